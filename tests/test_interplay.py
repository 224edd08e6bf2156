"""The model inside other people's tools: transformers' Trainer."""

import torch
from transformers import Trainer, TrainingArguments


class Knees(torch.utils.data.Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 5}


def test_transformers_trainer(make_model, tmp_path):
    model = make_model()
    before = model.classifier.weight.clone()
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Knees(), eval_dataset=Knees())
    trainer.train()
    assert not torch.equal(before, model.classifier.weight)
    predictions = trainer.predict(Knees())
    assert predictions.predictions.shape == (10, 5)  # the logits alone, one row for each X-ray
    trainer.save_model(str(tmp_path / "saved"))
    reloaded = type(model).from_pretrained(tmp_path / "saved").eval()
    sample = torch.stack([Knees()[0]["pixel_values"]])
    with torch.no_grad():
        torch.testing.assert_close(reloaded(sample).logits, model.eval()(sample).logits)

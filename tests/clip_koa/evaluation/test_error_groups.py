"""Figures by group of X-rays, out of a prediction file and the corpus it is of."""

import shutil

import torch
from PIL import ImageEnhance, ImageOps

from clip_koa.evaluation import error_groups
from clip_koa.evaluation.heads import Predictions
from clip_koa.evaluation.predictions import GradedSplit, write_predictions
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import GRADE_LABELS


def test_each_group_gets_its_own_errors(tmp_path, capsys):
    labels = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    files = [f"test/{labels[number]}/9{number:06d}{'LR'[number % 2]}.png" for number in range(8)]
    corpus = tmp_path / "corpus"
    for number, file in enumerate(files):
        knee = draw_knee(int(labels[number]), "LR"[number % 2], number).convert("L")
        if number < 2:
            knee = ImageEnhance.Contrast(knee).enhance(0.3)
        (corpus / file).parent.mkdir(parents=True, exist_ok=True)
        (ImageOps.invert(knee) if number == 7 else knee).save(corpus / file)
    named = labels.clone()
    named[[1, 3]] += 1  # two right knees, one of them of low contrast
    logits = 5 * torch.nn.functional.one_hot(named, 5).float()
    predictions = Predictions(torch.arange(8), labels, logits, logits, logits, logits)
    path = tmp_path / "predictions.jsonl"
    write_predictions(path, GradedSplit(predictions, files, [str(number) for number in range(8)]))

    assert error_groups.main([str(path), "--data_dir", str(corpus)]) == 0
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines()[2:]]
    table = {row[0]: row[1:] for row in rows}
    assert table["left knees"][:2] == ["4", "1.000 (1.000 to 1.000)"] and table["left knees"][3] == "+0.00"
    assert table["right knees"][0] == "4" and table["right knees"][1].startswith("0.500 (")
    assert table["right knees"][2:] == ["0.500", "+0.50"]
    assert table["stored bone dark"][0] == "1" and table["stored bone bright"][0] == "7"
    assert table["contrast: lowest quarter"][1].startswith("0.500") and "side unknown" not in table
    assert table[GRADE_LABELS[1]][0] == "2" and table[GRADE_LABELS[1]][3] == "+0.50"

    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", corpus)
    assert error_groups.main([str(path), "--data_dir", archive]) == 0 and capsys.readouterr().out == printed

    (corpus / files[0]).unlink()
    assert error_groups.main([str(path), "--data_dir", str(corpus)]) == 2
    assert f"{corpus} does not hold {files[0]}" in capsys.readouterr().err

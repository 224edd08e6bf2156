"""The API: typed, named, for gradio_client and for agents; and a Space that serves the same."""

import asyncio
import base64
import json

import pytest
from conftest import ROOT
from PIL import Image

from webapp.conftest import run_async, serve, upload, visiting


@pytest.fixture
def client(served):
    from gradio_client import Client

    client = Client(served.url, verbose=False)
    yield client
    client.close()


def test_grade_and_explain(client, served, visitor, knee):
    from gradio_client import handle_file

    file = knee("9000001L.png")
    film = client.predict(file=handle_file(str(file)), api_name="/grade")
    (answer,) = film["knees"]
    told = visitor.grade(file.read_bytes(), file.name)
    assert answer["grade"] == told["grade"] and answer["probabilities"] == pytest.approx(told["probabilities"])
    assert film["file"] == "9000001L.png" and answer["side"] == "L" and answer["name"].startswith("KL")
    assert answer["box"] is None and film["not_graded"] == []  # this model cannot find knees
    against = 2 if answer["grade"] != 2 else 1
    picture = client.predict(file=handle_file(str(file)), against=against, api_name="/explain")
    assert Image.open(picture).size == (120, 120) and Image.open(picture).mode == "RGB"
    left = [path.name for path in (served.folder / "uploads").rglob("*") if path.is_file()]
    assert file.name not in left  # deleted as soon as it was read


def test_both_knees_of_a_film(films, film):
    from gradio_client import Client, handle_file
    from gradio_client.exceptions import AppError

    client = Client(films.url, verbose=False)
    answer = client.predict(file=handle_file(str(film())), api_name="/grade")
    assert [(knee["side"], knee["side_assumed"], knee["box"]) for knee in answer["knees"]] == [
        ("R", True, [40, 90, 160, 210]), ("L", True, [250, 96, 370, 216]),
    ]  # fmt: skip
    whole = client.predict(file=handle_file(str(film())), framing="as_is", api_name="/grade")
    assert [knee["box"] for knee in whole["knees"]] == [None]
    none = client.predict(file=handle_file(str(film("none"))), api_name="/grade")
    assert none["knees"] == [] and "no knee seen from the front" in none["not_graded"][0]["reason"]
    pictures = [client.predict(file=handle_file(str(film())), side=side, api_name="/explain") for side in "RL"]
    assert [Image.open(picture).size for picture in pictures] == [(120, 120)] * 2
    assert Image.open(pictures[0]).tobytes() != Image.open(pictures[1]).tobytes()
    with pytest.raises(AppError, match="no knee seen from the front"):
        client.predict(file=handle_file(str(film("none"))), api_name="/explain")
    with pytest.raises(AppError, match="no knee of that side"):
        client.predict(file=handle_file(str(film("leg"))), side="L", api_name="/explain")
    client.close()


def test_what_is_wrong_is_told(client, tmp_path, knee):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(AppError, match="broken.png is not a PNG"):
        client.predict(file=handle_file(str(tmp_path / "broken.png")), api_name="/grade")
    with pytest.raises(AppError, match="There is no grade 9"):
        client.predict(file=handle_file(str(knee())), against=9, api_name="/explain")


def test_a_path_of_the_server_is_not_read(served, visitor):
    for path in ("/etc/passwd", str(ROOT / "README.md"), f"{served.folder}/uploads/../log"):
        joined = visitor.http.post(
            "gradio_api/call/grade", json={"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        )
        event = visitor.http.get(f"gradio_api/call/grade/{joined.json()['event_id']}").text
        assert "event: error" in event and "root:" not in event


def test_the_api_says_what_it_takes(client):
    described = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(described) == {"/grade", "/explain"}
    names = {name: [one["parameter_name"] for one in of["parameters"]] for name, of in described.items()}
    assert names == {"/grade": ["file", "framing"], "/explain": ["file", "against", "framing", "side"]}
    assert "probabilities" in json.dumps(described["/grade"]["returns"])


def test_agents_find_the_tools_and_grade(served, knee):
    mcp = pytest.importorskip("mcp", reason="needs the extra mcp")
    from mcp.client.streamable_http import streamablehttp_client

    async def ask():
        content = "data:image/png;base64," + base64.b64encode(knee().read_bytes()).decode()
        url = f"{served.url}gradio_api/mcp/"
        async with (
            streamablehttp_client(url) as (reading, writing, _),
            mcp.ClientSession(reading, writing) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            two = [session.call_tool("grade", {"file": content}) for _ in range(2)]  # the same file at once
            return tools, await asyncio.gather(*two)

    tools, answers = run_async(ask())
    assert set(tools) == {"grade", "explain"}
    assert "Kellgren-Lawrence" in tools["grade"].description and "against" in str(tools["explain"].inputSchema)
    for answer in answers:
        assert not answer.isError and "probabilities" in answer.content[0].text


@pytest.mark.slow
def test_the_space_serves_the_page_from_its_own_folder(browser, model_folder, knee, run_python, tmp_path):
    space = tmp_path / "space"
    run_python("push_to_hub.py", "anna/knees", "anna/page", "--space", "--dry_run", "--output", space)
    variables = {"CLIP_KOA_MODEL": str(model_folder), "PYTHONDONTWRITEBYTECODE": "", "SPACE_ID": "anna/page"}
    with serve(tmp_path / "served", cwd=space, **variables) as served, visiting(browser, served.url) as page:
        upload(page, knee())
        page.locator("#card .badge").wait_for()
        policy = page.request.get(served.url).headers["content-security-policy"]
        assert "frame-ancestors https://huggingface.co" in policy
    assert list((space / "clip_koa").rglob("page.*.pyc"))  # its own copy of the code is what ran


def test_with_a_wrong_model(run_python, tmp_path):
    wrong = run_python("app.py", "--model", tmp_path, expect=2)
    assert wrong.stderr.splitlines()[-1].startswith("clip-koa page: ") and "Traceback" not in wrong.stderr

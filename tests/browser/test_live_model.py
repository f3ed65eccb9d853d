"""The model in the page computes what katlib computes, and its figure follows the reader's hand."""

import json

import live
import pytest
import torch
from conftest import LIVE
from torch import Tensor

import katlib
from katlib.widgets import ModelExplorer
from katlib.widgets.images import load_images
from katlib.widgets.live import source
from katlib.widgets.model import _normalised, _rounded

TOLERANCE = 1e-3

# small models of every kind that the page computes
KINDS = {
    "conv stem, sequence pooling": {"stem": "conv", "global_pool": "seq"},
    "three convolutions": {"stem": "conv", "patch_size": 8, "global_pool": "seq"},
    "patch stem, class token": {},
    "patch stem, sequence pooling": {"global_pool": "seq"},
    "conv stem, class token": {"stem": "conv"},
    "ordinary MLPs": {"mlp": "mlp"},
    "other degrees and groups": {"degrees": (3, 2), "groups": 4, "numerator_groups": 2},
}


def small_model(**arguments) -> katlib.VisionTransformer:
    sizes = {"img_size": 32, "patch_size": 4, "num_classes": 10, "embed_dim": 32, "depth": 2}
    model = katlib.VisionTransformer(**sizes | {"num_heads": 2, "mlp_ratio": 1.5} | arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.25), "classes": None}
    return model


# ---- the engine by itself


@pytest.fixture(scope="module")
def engine_page(chromium):
    page = chromium.new_context(offline=True).new_page()
    page.evaluate(
        """async (code) => {
          const address = URL.createObjectURL(new Blob([code], {type: "text/javascript"}));
          Object.assign(globalThis, await import(address));
        }""",
        source("rational.js", "model_engine.js") + "\nexport { Engine, bytesOf, fromBase64 };",
    )
    yield page
    page.context.close()


def in_the_page(page, explorer, edits: list[dict]) -> Tensor:
    """The logits of all images after each of the edits, one after the other on the same traces."""
    asset = live.asset_script("weights", explorer.weights)
    page.add_script_tag(content=asset)
    logits = page.evaluate(
        """({text, pictures, edits}) => {
          const spec = JSON.parse(text), length = 3 * spec.side ** 2;
          const engine = new Engine(spec, fromBase64(katlibAssets.weights));
          const pixels = fromBase64(pictures);
          const traces = spec.labels.map((_, i) =>
            engine.begin(pixels.slice(i * length, (i + 1) * length)));
          return edits.map((edit) =>
            traces.map((trace) => Array.from(engine.logits(engine.run(trace, edit)))));
        }""",
        {"text": explorer.spec, "pictures": explorer.pictures, "edits": edits},
    )
    return torch.tensor(logits)


NO_EDIT: dict = {"coefficients": {}, "removed": []}


def edits_of(explorer) -> dict:
    return {"coefficients": explorer.coefficients, "removed": explorer.removed}


@torch.no_grad()
def by_katlib(model: katlib.VisionTransformer) -> Tensor:
    """The logits of the 20 images, from the weights that the page gets."""
    return _rounded(model)(_normalised(load_images()[0], model.pretrained_cfg))


@pytest.mark.parametrize("kind", KINDS)
def test_the_page_computes_katlibs_logits(engine_page, kind):
    model = small_model(**KINDS[kind])
    logits = in_the_page(engine_page, ModelExplorer(model), [NO_EDIT])[0]
    torch.testing.assert_close(logits, by_katlib(model), rtol=0, atol=TOLERANCE)


def test_the_page_computes_the_trained_models_logits(engine_page):
    explorer = ModelExplorer()
    logits = in_the_page(engine_page, explorer, [NO_EDIT])[0]
    torch.testing.assert_close(logits, by_katlib(explorer.model), rtol=0, atol=TOLERANCE)


def edit(explorer, name: str) -> None:
    """One of the edits that a reader can make."""
    pair = [[0.1, 0.5, 0.2, 0.0, 0.0, 0.0], [0.3, 0.0, 0.0, 0.0]]
    layers = [f"blocks.{block}.mlp.{act}" for block in (0, 1) for act in ("act1", "act2")]
    match name:
        case "a function":
            explorer.coefficients = {"blocks.1.mlp.act2.3": pair}
        case "all functions":
            names = [f"{layer}.{group}" for layer in layers for group in range(8)]
            explorer.coefficients = dict.fromkeys(names, pair)
        case "a head":
            explorer.removed = ["blocks.0.attn.1"]
        case "an MLP":
            explorer.removed = ["blocks.1.mlp"]
        case "several":
            explorer.coefficients = {"blocks.0.mlp.act1.0": pair}
            explorer.removed = ["blocks.0.attn.1", "blocks.1.attn.0", "blocks.1.mlp"]


EDITS = ["a function", "all functions", "a head", "an MLP", "several"]


@pytest.mark.parametrize("name", EDITS)
def test_the_page_computes_katlibs_logits_after_an_edit(engine_page, name):
    explorer = ModelExplorer(small_model())
    edit(explorer, name)
    before, after = in_the_page(engine_page, explorer, [NO_EDIT, edits_of(explorer)])
    explorer.write_back()
    torch.testing.assert_close(after, by_katlib(explorer.model), rtol=0, atol=TOLERANCE)
    assert (after - before).abs().max() > 10 * TOLERANCE


def test_edits_that_are_taken_back_leave_no_trace(engine_page):
    explorer = ModelExplorer(small_model())
    edits = []
    for name in EDITS:
        edit(explorer, name)
        edits.append(edits_of(explorer))
    logits = in_the_page(engine_page, explorer, [NO_EDIT, *edits, NO_EDIT])
    assert torch.equal(logits[0], logits[-1])
    assert not torch.equal(logits[0], logits[1])


# ---- the figure


@pytest.fixture
def show(new_page, tmp_path):
    """A function that opens the figure from a file, with its weights in another one."""

    def show_(explorer, width: int = 760, hash: str = "", script: str = "", **options):
        code = LIVE.read_text(encoding="utf-8")
        state = live.html(explorer, "a", tmp_path / "assets", "assets")
        file = tmp_path / "page.html"
        file.write_text(
            f'<html lang="en"><head><meta charset="utf-8"><script>{script}</script>'
            f'<meta name="viewport" content="width=device-width"></head>'
            f'<body><div class="live-place">{state}</div><script>{code}</script></body></html>',
            encoding="utf-8",
        )
        page = new_page(width, **options)
        page.goto(file.as_uri() + hash)
        page.locator("[data-live=ready]").wait_for()
        page.wait_for_timeout(200)
        return page.locator(".katlib-live")

    return show_


@pytest.fixture
def small():
    torch.manual_seed(3)
    return ModelExplorer(small_model())


def number(box, key: str) -> float:
    box.page.wait_for_timeout(60)
    return float(box.locator(f'output[data-key="{key}"]').get_attribute("data-value"))


def logits_shown(box) -> Tensor:
    box.page.wait_for_timeout(60)
    values = box.locator(".bars output").evaluate_all("rows => rows.map((r) => +r.dataset.value)")
    return torch.tensor(values)


def changes(box) -> list[str]:
    box.page.wait_for_timeout(60)
    return [
        text.removesuffix("undo").strip() for text in box.locator(".changes li").all_inner_texts()
    ]


def wait_for_all_images(box) -> None:
    """Until the worker has answered."""
    box.page.wait_for_timeout(1500)


def to_the_middle(node) -> None:
    """Scrolls it out from under the line of results, which stays at the window's lower edge."""
    node.evaluate('node => node.scrollIntoView({block: "center"})')


def drag_handle(box, name: str, dy: float) -> None:
    dot = box.locator(f'.knob[data-name="{name}"] .dot')
    to_the_middle(dot)
    place = dot.bounding_box()
    x, y = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    box.page.mouse.move(x, y)
    box.page.mouse.down()
    box.page.mouse.move(x, y + dy / 2)
    box.page.mouse.move(x, y + dy)
    box.page.mouse.up()


def test_where_no_worker_may_start_the_page_counts_itself(show, small):
    box = show(small, script="globalThis.Worker = undefined;")
    before = number(box, "right")
    box.locator('button[data-name="blocks.0.mlp"]').click()
    wait_for_all_images(box)
    small.removed = ["blocks.0.mlp"]
    small.write_back()
    right = (by_katlib(small.model).argmax(1) == load_images()[1]).sum().item()
    assert [number(box, "right"), before] == [right, right_at_first(small)]


def right_at_first(explorer) -> int:
    spec = json.loads(explorer.spec)
    return (torch.tensor(spec["logits"]).argmax(1) == torch.tensor(spec["labels"])).sum().item()


def test_another_image_gives_its_logits(show, small):
    box = show(small)
    box.locator('.thumb[data-image="7"]').click()
    expected = by_katlib(small.model)[7]
    torch.testing.assert_close(logits_shown(box), expected, rtol=0, atol=TOLERANCE)


def test_a_worker_counts_what_is_recognised(show, small):
    box = show(small)
    box.locator('button[data-name="blocks.0.mlp"]').click()
    wait_for_all_images(box)
    small.removed = ["blocks.0.mlp"]
    small.write_back()
    right = (by_katlib(small.model).argmax(1) == load_images()[1]).sum().item()
    assert number(box, "right") == right


def test_dragging_a_handle_changes_its_function_and_the_answer(show, small):
    box = show(small)
    before = logits_shown(box)
    curve = box.locator("path.curve.strong.blue").last.get_attribute("d")
    drag_handle(box, "3", -40)
    assert changes(box) == ["block 0, act1, group 0: bent"]
    assert not torch.equal(logits_shown(box), before)
    assert box.locator("path.curve.strong.blue").last.get_attribute("d") != curve


def test_the_other_handles_stay_where_they_are(show, small):
    box = show(small)

    def height(name: str) -> float:
        place = box.locator(f'.knob[data-name="{name}"]').get_attribute("transform")
        return float(place.removeprefix("translate(").removesuffix(")").split()[1])

    before = [height(name) for name in "123456"]
    drag_handle(box, "3", -40)
    box.page.wait_for_timeout(60)
    moved = [height(name) - y for name, y in zip("123456", before, strict=True)]
    assert moved == pytest.approx([0, 0, -40, 0, 0, 0], abs=1)


@pytest.mark.parametrize(
    "scope, said",
    [
        ("group", "block 1, act2, group 3: ReLU"),
        ("layer", "block 1, act2, all groups: ReLU"),
        ("all", "all functions: ReLU"),
    ],
)
def test_a_button_replaces_functions(show, small, scope, said):
    box = show(small)
    box.locator('.tile[data-function="blocks.1.mlp.act2.3"]').click()
    box.locator("select").select_option(scope)
    box.locator('button[data-choice="relu"]').click()
    assert changes(box) == [said]


def test_escape_takes_everything_back(show, small):
    box = show(small)
    before = logits_shown(box)
    box.locator('button[data-name="blocks.0.mlp"]').click()
    box.locator('button[data-name="blocks.1.attn.1"]').click()
    drag_handle(box, "2", 30)
    assert len(changes(box)) == 3
    box.page.keyboard.press("Escape")
    assert changes(box) == ["nothing is changed"]
    assert torch.equal(logits_shown(box), before)


def test_one_change_can_be_taken_back(show, small):
    box = show(small)
    box.locator('button[data-name="blocks.0.mlp"]').click()
    box.locator('button[data-name="blocks.1.attn.1"]').click()
    box.get_by_label("undo block 0, MLP: removed").click()
    assert changes(box) == ["block 1, head 1: removed"]


def test_the_last_block_says_what_the_model_says(show, small):
    box = show(small)
    shares = logits_shown(box).softmax(0)
    assert number(box, "lens 1") == pytest.approx(shares.max().item(), abs=1e-5)


def test_the_function_that_is_needed_most_is_the_one_that_katlib_finds(show, small):
    box = show(small)
    box.get_by_role("button", name="which does it need?").click()
    said = box.get_by_text("back at its start").or_(box.get_by_text("no single function"))
    said.wait_for(timeout=10_000)
    falls = falls_by_katlib(small)
    name = max(falls, key=falls.__getitem__)
    _, block, _, layer, group = name.split(".")
    assert f"block {block}, {layer}, group {group}: " in said.inner_text()
    assert f"{100 * falls[name]:.1f} points" in said.inner_text()


def falls_by_katlib(explorer) -> dict[str, float]:
    """How much the shown class loses if one function goes back to its start."""
    spec = json.loads(explorer.spec)
    image, label = explorer.image, spec["labels"][explorer.image]
    before = by_katlib(explorer.model)[image].softmax(0)[label]
    falls = {}
    for layer, pairs in spec["functions"].items():
        for group in range(len(pairs)):
            explorer.coefficients = {f"{layer}.{group}": spec["starts"][layer]}
            explorer.write_back()
            share = by_katlib(explorer.model)[image].softmax(0)[label]
            falls[f"{layer}.{group}"] = (before - share).item()
    return falls


def picture_of(canvas) -> str:
    canvas.page.wait_for_timeout(60)
    return canvas.evaluate("canvas => canvas.toDataURL()")


def test_the_arrow_keys_move_the_token_whose_attention_is_shown(show, small):
    box = show(small)
    picture, head = box.locator(".picture"), box.locator(".head canvas").first
    before, text = picture_of(head), picture.get_attribute("aria-valuetext")
    picture.press("ArrowLeft")
    assert picture_of(head) != before
    assert [text, picture.get_attribute("aria-valuetext")] == ["row 5, column 5", "row 5, column 4"]


def test_the_pointer_chooses_the_token(show, small):
    box = show(small)
    box.locator(".picture").hover(position={"x": 5, "y": 235})
    box.page.wait_for_timeout(60)
    assert box.locator(".picture").get_attribute("aria-valuetext") == "row 8, column 1"


@torch.no_grad()
def test_a_picture_of_ones_own_is_cropped_and_scaled(show, small, tmp_path):
    from PIL import Image

    image = Image.new("RGB", (96, 64), (200, 30, 30))
    image.paste((20, 60, 220), (16, 0, 80, 64))
    image.save(tmp_path / "own.png")
    box = show(small)
    box.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    box.page.wait_for_timeout(300)
    blue = torch.tensor([20, 60, 220], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    expected = _rounded(small.model)(_normalised(blue, small.model.pretrained_cfg))[0]
    torch.testing.assert_close(logits_shown(box), expected, rtol=0, atol=0.02)


def test_a_file_that_is_no_picture_is_refused_in_words(show, small, tmp_path):
    (tmp_path / "own.png").write_text("no picture")
    box = show(small)
    before = logits_shown(box)
    box.locator("input[type=file]").set_input_files(tmp_path / "own.png")
    box.get_by_text("no picture that the browser can read").wait_for()
    assert torch.equal(logits_shown(box), before)


def test_without_its_weights_the_figure_shows_what_katlib_computed(chromium, small):
    context = chromium.new_context(offline=True)
    page = context.new_page()
    state = live.html(small, "a").partition("</script>")[2]
    page.set_content(f"<body>{state}<script>{LIVE.read_text()}</script></body>")
    box = page.locator(".katlib-live")
    box.get_by_text("weights could not be loaded").wait_for()
    expected = by_katlib(small.model)[small.image]
    torch.testing.assert_close(logits_shown(box), expected, rtol=0, atol=1e-5)
    context.close()


def test_a_link_holds_the_state(show, small):
    box = show(small)
    box.locator('.thumb[data-image="7"]').click()
    box.locator('.tile[data-function="blocks.1.mlp.act2.3"]').click()
    box.locator('button[data-choice="relu"]').click()
    box.locator('button[data-name="blocks.1.attn.1"]').click()
    box.get_by_role("button", name="copy a link to this").click()
    expected = changes(box), logits_shown(box)
    again = show(small, hash=box.page.evaluate("location.hash"))
    assert changes(again) == expected[0] == ["block 1, act2, group 3: ReLU", REMOVED]
    assert torch.equal(logits_shown(again), expected[1])


REMOVED = "block 1, head 1: removed"


@pytest.mark.parametrize("text", ["#kat=%7B%7D", "#kat=%", "#kat=null", "#elsewhere"])
def test_a_link_that_does_not_fit_is_passed_over(show, small, text):
    assert changes(show(small, hash=text)) == ["nothing is changed"]


def take_the_pen(box) -> None:
    box.get_by_role("button", name="draw").click()
    box.get_by_role("button", name="draw", pressed=True).wait_for()


def stroke(box) -> None:
    place = box.locator(".picture").bounding_box()
    x, y = place["x"] + 40, place["y"] + 40
    box.page.mouse.move(x, y)
    box.page.mouse.down()
    box.page.mouse.move(x + 60, y + 60)
    box.page.mouse.up()


def test_drawing_changes_the_picture_and_the_answer(show, small):
    box = show(small)
    canvas = box.locator(".picture canvas")
    before = picture_of(canvas), logits_shown(box)
    stroke(box)
    assert picture_of(canvas) == before[0]
    take_the_pen(box)
    stroke(box)
    assert picture_of(canvas) != before[0]
    assert not torch.equal(logits_shown(box), before[1])


def test_the_space_bar_draws_too(show, small):
    box = show(small)
    canvas = box.locator(".picture canvas")
    before = picture_of(canvas)
    take_the_pen(box)
    box.locator(".picture").press(" ")
    assert picture_of(canvas) != before


def test_where_there_is_a_kernel_the_weights_are_a_view_of_bytes(engine_page):
    code = """async () => {
      const { buffer } = new Uint8Array([1, 2, 3, 4]);
      return Array.from(await bytesOf(new DataView(buffer, 1, 2)));
    }"""
    assert engine_page.evaluate(code) == [2, 3]


def test_a_phone_shows_it_all(show, small):
    box = show(small, width=390, has_touch=True, is_mobile=True)
    assert box.page.evaluate("document.documentElement.scrollWidth") == 390


def test_what_can_be_pressed_has_a_name(show, small):
    box = show(small)
    names = box.locator("button, [role=slider], select, input:not([hidden])").evaluate_all(
        "nodes => nodes.map((n) => n.ariaLabel || n.textContent.trim())"
    )
    assert len(names) > 50
    assert all(names)

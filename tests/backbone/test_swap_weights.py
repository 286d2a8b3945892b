"""Pretrained weights from a path or an address: whole or not at all, and never a silent half."""

from __future__ import annotations

import hashlib
import http.server
import threading

import numpy as np
import paddle
import pytest
from installed import needs
from swap_nets import SPEC, Pose
from toy import TinyNet, equal_weights, weights_of

from paddlelite_callbacks import BackboneSwap
from paddlelite_callbacks.backbone import registry as sources
from paddlelite_callbacks.backbone.registry import build, weights_file, weights_url
from paddlelite_callbacks.backbone.weights import fetch, load_weights

NAME = "PPLCNet_x0_25"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """ImageNet-like weights of the whole classifier: 1,000 classes, every value its own."""
    paddle.seed(11)
    state = build(NAME).state_dict()
    path = tmp_path_factory.mktemp("weights") / "PPLCNet_x0_25_pretrained.pdparams"
    paddle.save({key: paddle.rand(value.shape) for key, value in state.items()}, str(path))
    return path


@pytest.fixture
def server(file):
    """Serves the weights; ``/broken`` promises more than it sends, ``/none`` is missing."""
    counts = {"requests": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            counts["requests"] += 1
            data = file.read_bytes()
            self.send_response(404 if "none" in self.path else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if "none" not in self.path:
                self.wfile.write(data[: len(data) // 2] if "broken" in self.path else data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", counts
        running.shutdown()


@pytest.fixture(autouse=True)
def _own_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for key in ("paddleclas", "paddle.vision"):
        moved = sources.Source(key, sources.SOURCES[key].classes, "Apache-2.0", tmp_path / "cache" / key)
        monkeypatch.setitem(sources.SOURCES, key, moved)


def check_inside(network, file):
    state = paddle.load(str(file))
    own = {k[len("backbone.") :]: v for k, v in weights_of(network).items() if k.startswith("backbone.")}
    loaded = {k: v for k, v in own.items() if not k.startswith("project.")}
    assert loaded
    assert all(np.array_equal(value, state[key].numpy()) for key, value in loaded.items())


@needs("paddleclas")
@pytest.mark.parametrize("place", ["path", "no suffix", "file url", "http"])
def test_weights_from_everywhere(place, file, server):
    url, counts = server
    source = {
        "path": file,
        "no suffix": file.with_suffix(""),
        "file url": file.as_uri(),
        "http": f"{url}/weights.pdparams",
    }[place]
    for _ in range(2):
        swap = BackboneSwap(
            NAME, at="backbone", pretrained=source, sha256=hashlib.sha256(file.read_bytes()).hexdigest()
        )
        check_inside(swap(Pose(), SPEC), file)
        assert swap.report.complete
        assert swap.report.unexpected == ()  # the head's keys are known, though cut off
    assert counts["requests"] == (1 if place == "http" else 0)  # the second time it is there already


@needs("paddleclas")
def test_pretrained_true_takes_the_makers_file_from_their_own_cache(file):
    url = weights_url(NAME)
    assert url.startswith("https://paddle-imagenet-models-name.bj.bcebos.com/")
    target = weights_file(NAME, url)
    assert target.name == "PPLCNet_x0_25_pretrained.pdparams"
    target.parent.mkdir(parents=True)
    target.write_bytes(file.read_bytes())
    check_inside(BackboneSwap(NAME, at="backbone", pretrained=True)(Pose(), SPEC), file)


def test_the_makers_tables_are_found_under_their_own_spellings():
    assert weights_url("mobilenet_v1").endswith("/mobilenetv1_1.0.pdparams")
    assert weights_url("mobilenet_v2").endswith("/mobilenet_v2_x1.0.pdparams")
    assert weights_url("mobilenet_v3_large").endswith("/mobilenet_v3_large_x1.0.pdparams")
    assert weights_url("resnet50").endswith("/resnet50.pdparams")
    assert weights_url("vgg11") is None
    with pytest.raises(ValueError, match="no weights for vgg11: give a path"):
        BackboneSwap("vgg11", pretrained=True)(TinyNet())


@needs("paddleclas")
def test_a_classifier_for_other_classes_keeps_its_own_head(file):
    swap = BackboneSwap(NAME, pretrained=file)
    network, state = swap(TinyNet()), paddle.load(str(file))
    assert swap.report.head == ("fc.weight", "fc.bias")
    assert swap.report.complete
    assert network.fc.weight.shape == [1280, 4]
    assert all(np.array_equal(v, state[k].numpy()) for k, v in weights_of(network).items() if not k.startswith("fc."))


def unreachable(swap, network, tmp_path, match, error=RuntimeError):
    before = weights_of(network)
    with pytest.raises(error, match=match) as raised:
        swap(network, SPEC)
    assert "\n" not in str(raised.value)
    assert equal_weights(weights_of(network), before)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@needs("paddleclas")
def test_what_cannot_be_fetched_is_one_clear_error_and_leaves_nothing(server, tmp_path):
    url, _ = server
    for place, match in (
        ("http://127.0.0.1:9/w.pdparams", r"could not be downloaded from http://127.0.0.1:9/w.pdparams \(.*refused"),
        (f"{url}/none.pdparams", "HTTP Error 404"),
        (f"{url}/broken.pdparams", "broke off|IncompleteRead"),
    ):
        unreachable(BackboneSwap(NAME, at="backbone", pretrained=place), Pose(), tmp_path, match)
    wrong = BackboneSwap(NAME, at="backbone", pretrained=f"{url}/w.pdparams", sha256="0" * 64)
    unreachable(wrong, Pose(), tmp_path, "has the sha256 [0-9a-f]{64}, expected 0000", error=ValueError)


@needs("paddleclas")
def test_a_file_with_another_checksum_is_fetched_anew(file, server, tmp_path):
    url, counts = server
    target = tmp_path / "kept.pdparams"
    target.write_bytes(b"half")
    fetch(f"{url}/w.pdparams", target, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    assert target.read_bytes() == file.read_bytes()
    assert counts["requests"] == 1
    with pytest.raises(ValueError, match="sha256"):
        fetch(f"{url}/w.pdparams", target, sha256="0" * 64)
    assert target.read_bytes() == file.read_bytes()  # what was there stands
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["kept.pdparams"]


@needs("paddleclas")
def test_files_that_are_not_there_are_refused_when_the_swap_is_made(tmp_path, file):
    with pytest.raises(ValueError, match=r"pretrained='.*none'.* give the path of a \.pdparams file"):
        BackboneSwap(NAME, pretrained=tmp_path / "none")
    with pytest.raises(ValueError, match=r"has the sha256 \w+, expected beef"):
        BackboneSwap(NAME, pretrained=file, sha256="beef")(TinyNet())


def partial(file, tmp_path):
    state = paddle.load(str(file))
    del state["conv1.conv.weight"]
    state["blocks2.0.pw_conv.conv.weight"] = paddle.rand([1, 2, 1, 1])
    state["stranger"] = paddle.rand([1])
    paddle.save(state, str(tmp_path / "part.pdparams"))
    return tmp_path / "part.pdparams"


@needs("paddleclas")
def test_a_partial_match_is_reported_and_refused_unless_not_strict(file, tmp_path):
    part, network = partial(file, tmp_path), Pose()
    before = weights_of(network)
    match = (
        r"do not fit PPLCNet_x0_25\. .*part\.pdparams: \d+ keys loaded; 1 missing \(conv1\.conv\.weight\); "
        r"1 unexpected \(stranger\); 1 mismatched \(blocks2\.0\.pw_conv\.conv\.weight \[1, 2, 1, 1\] not "
        r"\[8, 8, 1, 1\]\)\. .*strict=False"
    )
    with pytest.raises(ValueError, match=match):
        BackboneSwap(NAME, at="backbone", pretrained=part)(network, SPEC)
    assert equal_weights(weights_of(network), before)
    swap = BackboneSwap(NAME, at="backbone", pretrained=part, strict=False)
    swap(network, SPEC)
    assert (swap.report.missing, swap.report.unexpected) == (("conv1.conv.weight",), ("stranger",))
    assert len(swap.report.mismatched) == 1
    assert not swap.report.complete
    state = paddle.load(str(file))
    assert all(np.array_equal(weights_of(network)[f"backbone.{k}"], state[k].numpy()) for k in swap.report.loaded)


def test_files_of_another_kind_are_refused(tmp_path):
    network = TinyNet()
    for content, match in (
        ({"a": 1}, "holds no state_dict"),
        ({"backbone.conv1.weight": paddle.rand([1])}, "0 keys loaded.* prefix"),
    ):
        paddle.save(content, str(tmp_path / "odd.pdparams"))
        with pytest.raises(ValueError, match=match):
            load_weights(network, tmp_path / "odd.pdparams", strict=False)
    (tmp_path / "odd.pdparams").write_bytes(b"\x80nonsense")
    with pytest.raises(ValueError, match=r"not a file of paddle\.save"):
        load_weights(network, tmp_path / "odd.pdparams")


def test_keys_of_the_head_are_those_that_differ_in_the_classes_alone(tmp_path):
    network = TinyNet(outputs=7)
    paddle.save(TinyNet(outputs=5).state_dict(), str(tmp_path / "five.pdparams"))
    assert load_weights(network, tmp_path / "five.pdparams", num_classes=7).head == ("fc.weight", "fc.bias")
    paddle.save(TinyNet(width=5, outputs=7).state_dict(), str(tmp_path / "wide.pdparams"))
    with pytest.raises(ValueError, match="mismatched"):
        load_weights(network, tmp_path / "wide.pdparams", num_classes=7)

"""Import paths that the README named before the rooms were rebuilt: they work, and warn."""

from __future__ import annotations

import importlib
import warnings

import pytest

OLD = {
    "backbone.summary": ["SwapSummary"],
    "deploy.bench": ["BenchOptions"],
    "deploy.engines": ["ENGINES", "EngineError", "missing_reason", "reason"],
    "deploy.export": ["Artefact", "ExportError", "copy_network", "export_onnx", "export_paddle", "staged_folder"],
    "deploy.forms": ["export_forms"],
    "deploy.saturation": ["saturating_channels"],
    "distill.afd": ["AttentionFeatureLoss"],
    "distill.catalogue": ["LOSSES"],
    "distill.projection": ["Projection"],
    "files": ["staged_file"],
    "quant.diagnosis": ["Diagnosis"],
    "quant.outputs": ["attach_output_quanter_", "output_places"],
    "quant.quanters": ["ChannelWeightQuanter", "LSQWeightQuanter", "PACTActivationQuanter"],
    "report.ladder": ["append_joint_timing", "timed_together"],
    "report.render": ["ladder_png", "write_ladder"],
    "report.verdict": ["Verdict"],
    "saved": ["read_saved"],
}
RENAMED = {
    "ChannelWeightQuanter": "ChannelWeightQuantizer",
    "LSQWeightQuanter": "LSQWeightQuantizer",
    "PACTActivationQuanter": "PACTActivationQuantizer",
    "activation_quanters": "activation_quantizers",
    "attach_output_quanter_": "attach_output_quantizer_",
    "detach_output_quanter_": "detach_output_quantizer_",
    "quantisers_off": "quantizers_off",
    "refresh_quantisers_": "refresh_quantizers_",
    "strip_quantisers_": "strip_quantizers_",
    "switch_quantisers_": "switch_quantizers_",
}
OLD_NAMES = {
    "quant.output_quantizers": ["attach_output_quanter_", "detach_output_quanter_"],
    "quant.prepare": ["activation_quanters"],
    "quant.quantizers": ["ChannelWeightQuanter", "LSQWeightQuanter", "PACTActivationQuanter"],
    "quant.switch": ["quantisers_off", "refresh_quantisers_", "strip_quantisers_", "switch_quantisers_"],
}
KEPT = {
    "distill.schedules": ["cosine", "warm_up"],
    "distill.losses": ["jsdiv", "kl", "loss_for_task"],
    "errors": ["ExportError", "require"],
    "models.guide_weights": ["load_guide_weights_"],
    "quant.checkpoint": ["load_pact_", "quantized_in"],
    "report.record": ["Record", "read_records"],
}


@pytest.mark.parametrize(("module", "names"), OLD.items(), ids=list(OLD))
def test_an_old_path_works_and_warns(module, names):
    old = importlib.import_module(f"paddlelite_callbacks.{module}")
    for name in names:
        with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} has moved to paddlelite_callbacks\.") as told:
            value = getattr(old, name)
        home, _, new = str(told[0].message).split(" has moved to ")[1].split(";")[0].rpartition(".")
        assert value is getattr(importlib.import_module(home), new)
        assert new in (name, RENAMED.get(name))
        assert told[0].filename == __file__
    assert set(names) <= set(dir(old))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = old.nothing


@pytest.mark.parametrize(("module", "names"), OLD_NAMES.items(), ids=list(OLD_NAMES))
def test_an_old_name_works_and_says_the_new_one(module, names):
    home = importlib.import_module(f"paddlelite_callbacks.{module}")
    for name in names:
        with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is now {module}\.{RENAMED[name]};") as told:
            assert getattr(home, name) is getattr(home, RENAMED[name])
        assert told[0].filename == __file__
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = home.nothing


@pytest.mark.parametrize(("module", "names"), KEPT.items(), ids=list(KEPT))
def test_a_path_that_stayed_does_not_warn(module, names):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = importlib.import_module(f"paddlelite_callbacks.{module}")
        for name in names:
            assert getattr(kept, name) is not None

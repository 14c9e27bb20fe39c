"""What is a secret: one function decides, for messages, logs and checkpoints alike."""

from pathlib import Path

import pytest

from transformer_trial.checkpoints import redact_configurations
from transformer_trial.errors import format_value, redact

KEYS = """
token hf_token HF_TOKEN auth_token access_token apiToken api_token token_file_token password PASSWORD passwd db_passwd
pass smtp_pass passphrase ssh_passphrase pwd DB_PWD secret client_secret secret_key secrets private_key privateKey
api_key apiKey access_key account_key openai_key OPENAI_KEY github_pat GITHUB_PAT pat bearer cookie cookies session
session_id sas sas_url credential credentials aws_secret_access_key AWS_SESSION_TOKEN auth authorization
connection_string connectionString
""".split()  # noqa: SIM905
VALUES = [
    "hf_abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrst", "github_pat_abcdefghijklmnopqrst", "sk-abcdefghijklmnopqrst",
    "AKIAABCDEFGHIJKLMNOP", "xoxb-1234567890-abc", "Bearer abcdefghijk", "https://user:pa55@example.org/data",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "eyJhbGciOi.eyJzdWIiOiI.SflKxwRJSM",
    "HF_TOKEN=planted", "HF_TOKEN = planted", "OPENAI_KEY=planted", "AWS_SECRET=planted", "password: planted",
]  # fmt: skip
NO_KEYS = """
tokenizer_name tokens tokenizer context_tokens label_all_tokens pad_token eos_token bos_token sep_token cls_token
unk_token mask_token max_tokens pretrained_model_name_or_path model_name config_name revision cache_dir num_labels
learning_rate weight_decay adam_beta1 lr_scheduler_type num_warmup_steps global_batch_size mixed_precision
dataset_name train_file validation_file test_file text_column_name label_column_name sentence_column_name label_list
label_scheme metric_mode metric_scheme encoding delimiter description labels workspace project entrypoint metric name
path pathology keyboard passes bypass compass author authors patience pattern passage sessions_per_day key keys
""".split()  # noqa: SIM905
NO_VALUES = [
    "bert-base-cased", "sk-learn", "hf_short", "https://example.org/data", "a: b", "tokens: 5", "path=/data/train.json",
    "Bearer", "user@example.org", "B-PER", "time 12:30", "bearer bonds",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_what_is_called_a_secret_is_not_repeated(key: str) -> None:
    assert "planted" not in format_value(f"environment.{key}", "planted")
    secrets, redacted = ["planted", 1, {"x": "planted"}, None, True], [*["REDACTED"] * 2, {"x": "REDACTED"}, None, True]
    assert redact({key: "planted", "other": [{key: secrets}]}) == {key: "REDACTED", "other": [{key: redacted}]}


@pytest.mark.parametrize("value", VALUES)
def test_what_shows_itself_to_be_a_secret_is_not_repeated(value: str) -> None:
    assert value not in format_value("description", value) and "REDACTED" in redact([value])[0]
    assert "planted" not in redact(value) and "pa55" not in redact(value)


@pytest.mark.parametrize("key", NO_KEYS)
def test_other_names_are_no_secrets(key: str) -> None:
    assert format_value(f"data.{key}", "shown") == "'shown'" and redact({key: "shown"}) == {key: "shown"}


@pytest.mark.parametrize("value", NO_VALUES)
def test_other_values_are_no_secrets(value: str) -> None:
    assert format_value("description", value) == repr(value) and redact({"a": value}) == {"a": value}


def test_configurations_in_a_checkpoints_copy_of_the_code_are_redacted(tmp_path: Path) -> None:
    (tmp_path / "sub" / "code").mkdir(parents=True)
    files = {"a.yaml": "x: {api_key: planted}", "b.yml": "env: [HF_TOKEN=planted]", "c.json": '{"password": "planted"}'}
    kept = {"d.yaml": "a: [kept]", "e.json": '{"tokens": ["kept"]}', "f.yaml": "{ planted", "g.txt": "pwd: planted"}
    for name, text in (files | kept).items():
        (tmp_path / "sub" / "code" / name).write_text(text)
    redact_configurations(tmp_path / "sub")
    left = {name: (tmp_path / "sub" / "code" / name).read_text() for name in files | kept}
    assert ["planted" in left[name] or "REDACTED" not in left[name] for name in files] == [False] * 3
    assert {name: left[name] for name in kept} == kept


def test_a_yaml_that_expands_is_passed_over(tmp_path: Path) -> None:
    text = "- &a0 [x, x]\n" + "".join(f"- &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "other.yaml").write_text(text)
    redact_configurations(tmp_path)  # it ends
    assert (tmp_path / "code" / "other.yaml").read_text() == text

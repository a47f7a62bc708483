"""`--config FILE`, parsed by the command line that it is for."""

import dataclasses
import json

import pytest
import yaml

from t5jax.cli.config_file import expand_config
from t5jax.cli.finetune import Finetune
from t5jax.cli.main import run_command
from t5jax.cli.pretrain import Pretrain
from t5jax.training.run import save_options


@pytest.fixture
def parse(capsys):
    """Parses arguments, and returns the config or what an error prints."""

    def parse(*arguments):
        configs = []
        try:
            run_command(Pretrain, configs.append, arguments=arguments)
        except SystemExit:
            return capsys.readouterr().err
        return configs[0]

    return parse


OPTIONS = {
    "batch_size": 4,
    "tokenizer": None,
    "fit": {"steps": 7, "keep_every": None},
    "step": {"ema_decay": 0.5, "frozen": ["encoder", "decoder/.*"]},
    "data": {"path": "a b.txt"},
    "optimizer": {"name": "adamw", "schedule": {"learning_rate": 1e-4}},
}


@pytest.mark.parametrize("dump", [json.dumps, yaml.safe_dump])
def test_options_of_a_file_are_those_of_the_command_line(parse, tmp_path, dump):
    (tmp_path / "run.yaml").write_text(dump(OPTIONS))
    config = parse("--config", str(tmp_path / "run.yaml"), "--seed", "3")
    assert (config.batch_size, config.tokenizer, config.seed) == (4, None, 3)
    assert (config.fit.steps, config.fit.keep_every) == (7, None)
    assert (config.step.ema_decay, config.step.frozen) == (0.5, ("encoder", "decoder/.*"))
    assert config.data.path == "a b.txt"
    assert (config.optimizer.name, config.optimizer.schedule.learning_rate) == ("adamw", 1e-4)


def test_a_run_writes_a_file_that_repeats_it(parse, tmp_path):
    arguments = ["--batch-size", "4", "--steps", "7", "--frozen", "encoder", "--model", "t5-small"]
    config = parse(*arguments, "--output", str(tmp_path))
    save_options(config)
    again = parse("--config", str(tmp_path / "options.yaml"), "--output", str(tmp_path))
    assert dataclasses.asdict(again) == dataclasses.asdict(config)


def test_the_command_line_overrides_the_file(parse, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(OPTIONS))
    file = f"--config={tmp_path / 'run.yaml'}"
    config = parse("--steps", "9", file, "--optimizer.name", "adafactor")
    assert (config.fit.steps, config.optimizer.name) == (9, "adafactor")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fit: {stepz: 3}", "unknown option fit.stepz; did you mean 'steps'"),
        ("fit: 3", "fit must map option names to values, got 3"),
        ("[1, 2]", "the file must map option names to values, got [1, 2]"),
        ("{", "config must be a YAML or JSON file, got "),
        ("!!python/object/apply:os.system [echo]", "config must be a YAML or JSON file, got "),
    ],
)
def test_bad_file_is_an_error_of_one_sentence(parse, tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    assert message in parse("--config", str(tmp_path / "run.yaml"))


def test_missing_file_is_named(parse, tmp_path):
    assert "file, got nowhere.yaml" in parse("--config", "nowhere.yaml")
    assert "must be followed by a file" in parse("--config")


def test_booleans_have_two_options(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("pack: false\nhosts: {auto: true}\ntasks: my.json\n")
    configs = []
    with pytest.raises(SystemExit):
        run_command(Finetune, configs.append, arguments=[f"--config={path}", "--hosts.nothing"])
    run_command(Finetune, configs.append, arguments=[f"--config={path}"])
    assert (configs[0].pack, configs[0].hosts.auto, configs[0].tasks) == (False, True, "my.json")


def test_empty_file_has_no_options(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert expand_config(["--config", str(tmp_path / "empty.yaml")], Pretrain) == []

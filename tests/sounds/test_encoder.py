"""Features and rows are transformers', and no sound changes another's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration, Qwen2AudioProcessor

from mmserve.errors import CheckpointError
from mmserve.models.loader import load_weights
from mmserve.sounds.encoder import SoundEncoder, rename
from mmserve.sounds.features import MelProcessor, Mels
from mmserve.sounds.geometry import SoundGeometry
from tests.checkpoints.qwen2_audio import QWEN2_AUDIO_TEMPLATE, tiny_qwen2_audio
from tests.sounds.made import Waves, chirp, noise

SECONDS = 3
LENGTHS = (321, 800, 1_601, 16_000, 20_001, 47_999, 48_000)


class Ours:
    """Features and encoder of a checkpoint folder."""

    def __init__(self, path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        processor = json.loads((path / "preprocessor_config.json").read_text())
        self.geometry = SoundGeometry.from_configs(config["audio_config"], processor)
        self.mels = MelProcessor(processor, self.geometry)
        self.encoder = SoundEncoder(config["audio_config"], config["text_config"]["hidden_size"])
        load_weights(self.encoder, path, rename, dtype=torch.float32, device="cpu")

    def rows(self, *sounds: Waves) -> list[Tensor]:
        return self.encoder.encode([self.mels(sound) for sound in sounds])


class Theirs:
    def __init__(self, path: Path) -> None:
        self.model = Qwen2AudioForConditionalGeneration.from_pretrained(path, dtype=torch.float32).eval()
        self.processor = AutoProcessor.from_pretrained(path)

    def inputs(self, sound: Waves) -> Any:
        return self.processor(
            text="<|audio_bos|><|AUDIO|><|audio_eos|>", audio=[sound], sampling_rate=16_000, return_tensors="pt"
        )

    @torch.inference_mode()
    def rows(self, sound: Waves) -> Tensor:
        made: list[Tensor] = []
        inputs = self.inputs(sound)
        hook = self.model.model.multi_modal_projector.register_forward_hook(lambda _m, _a, out: made.append(out[0]))
        self.model(**inputs)
        hook.remove()
        return made[0][: int((inputs["input_ids"] == self.model.config.audio_token_id).sum())]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_audio(tmp_path_factory.mktemp("audio"), seconds=SECONDS)


@pytest.fixture(scope="module")
def ours(path: Path) -> Ours:
    return Ours(path)


@pytest.fixture(scope="module")
def theirs(path: Path) -> Theirs:
    return Theirs(path)


@pytest.mark.parametrize("samples", LENGTHS)
class TestEquality:
    def test_features_are_the_processors(self, samples: int, ours: Ours, theirs: Theirs) -> None:
        sound = chirp(samples, 16_000)
        made, inputs = ours.mels(sound), theirs.inputs(sound)
        assert torch.equal(made.values, inputs["input_features"][0])
        assert made.frames == inputs["feature_attention_mask"].sum()

    def test_rows_are_transformers(self, samples: int, ours: Ours, theirs: Theirs) -> None:
        sound = noise(samples, samples)
        (made,), wanted = ours.rows(sound), theirs.rows(sound)
        assert made.shape == wanted.shape
        torch.testing.assert_close(made, wanted, atol=2e-5, rtol=1e-5)

    def test_a_sound_among_others_is_as_alone(self, samples: int, ours: Ours) -> None:
        sounds = [noise(n, n) for n in (samples, *LENGTHS)]
        together = ours.rows(*sounds)
        (alone,) = ours.rows(sounds[0])
        torch.testing.assert_close(together[0], alone, atol=2e-5, rtol=1e-5)
        assert len({row.untyped_storage().data_ptr() for row in together}) == len(together)


class TestWhatIsHeard:
    def test_what_transformers_leaves_out_of_a_long_sound_is_left_out(self, ours: Ours, theirs: Theirs) -> None:
        sound = noise(60_000)
        (made,) = ours.rows(sound[: ours.geometry.most_samples])
        torch.testing.assert_close(made, theirs.rows(sound), atol=2e-5, rtol=1e-5)

    def test_silence_behind_a_sound_is_not_computed(self, ours: Ours) -> None:
        """Whatever stands in the frames that no row depends on."""
        mels = ours.mels(noise(8_000))
        spoiled = mels.values.clone()
        spoiled[:, 2 * ((mels.frames + 1) // 2) + 1 :] = float("nan")
        assert torch.equal(*ours.encoder.encode([mels, Mels(spoiled, mels.frames)]))

    def test_nothing_is_nothing(self, ours: Ours) -> None:
        assert ours.encoder.encode([]) == []


class TestSettings:
    def test_both_spellings_of_the_weights_names(self, tmp_path: Path, ours: Ours) -> None:
        newer = Ours(tiny_qwen2_audio(tmp_path, seconds=SECONDS, new_names=True))
        for name, value in newer.encoder.state_dict().items():
            assert torch.equal(value, ours.encoder.state_dict()[name])

    @pytest.mark.parametrize(
        "change",
        [{"activation_function": "relu"}, {"encoder_attention_heads": 7}, {"d_model": 0}, {"encoder_layers": "2"}],
    )
    def test_towers_that_are_not_served(self, change: dict[str, Any]) -> None:
        with pytest.raises(CheckpointError, match="audio_config"):
            SoundEncoder(change, 64)

    def test_the_published_tower_is_the_default(self) -> None:
        encoder = SoundEncoder({}, 4096)
        assert sum(parameter.numel() for parameter in encoder.tower.parameters()) == 636_968_960  # whisper-large-v3's
        assert all(parameter.is_meta for parameter in encoder.parameters())

    @pytest.mark.parametrize("setting", [{"dither": 1e-4}, {"do_normalize": True}, {"feature_size": "many"}])
    def test_extractors_that_are_not_served(self, setting: dict[str, Any], ours: Ours) -> None:
        with pytest.raises(CheckpointError, match="feature extractor"):
            MelProcessor(setting, ours.geometry)

    def test_other_windows_of_the_fourier_transform(self, tmp_path: Path) -> None:
        path = tiny_qwen2_audio(tmp_path, seconds=SECONDS, preprocessor={"n_fft": 512})
        sound = noise(5_000)
        torch.testing.assert_close(Ours(path).rows(sound)[0], Theirs(path).rows(sound), atol=2e-5, rtol=1e-5)


def test_the_template_is_transformers_own() -> None:
    """The published template differs from the one that the processor class carries in one alternative only."""
    carried = Qwen2AudioProcessor.default_chat_template.fget(None)
    assert carried.replace(" or content['type'] == 'audio'", "") == QWEN2_AUDIO_TEMPLATE

"""Qwen2-Audio answers as transformers does, and a sound that was met before costs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2AudioForConditionalGeneration

from mmserve.config import Limits
from mmserve.engine.build import build_engine
from mmserve.errors import CheckpointError, CorruptAudio, TooManyMedia, UnsupportedAudio, UnsupportedMedia
from mmserve.models.families import build_model
from mmserve.prompt import PromptBuilder
from mmserve.sampling import SamplingParams
from mmserve.sounds import decode as decoding
from mmserve.sounds.encoder import SoundEncoder
from mmserve.types import AudioPart, ImagePart, Message, Prompt, Request, TextPart
from tests.checkpoints import tiny_qwen2_audio, tiny_qwen2_vl, tiny_text
from tests.models.equality import ROOMY, resolve, served
from tests.models.hearing import Heard, HearingReference, heard_cases
from tests.models.test_families import assert_same, parameters
from tests.proofs.serving import serve
from tests.reference import Tally
from tests.sounds.made import encoded, noise

SECONDS = 3
SOUNDS = (0, 1, 2, 3, 1, 1, 0, 1, 2, 1, 3, 1, 1, 2, 0, 1, 3, 1, 2, 1)
GREEDY = SamplingParams(max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen2_audio(tmp_path_factory.mktemp("audio"), seconds=SECONDS)


@pytest.fixture(scope="module")
def builder(path: Path) -> PromptBuilder:
    return PromptBuilder(resolve(path), Limits())


def check_answers(path: Path, sounds: tuple[int, ...], *, seed: int = 0, tokens: int = 6) -> Tally:
    """Each question alone, batched, cached and in chunks of 24 tokens."""
    checkpoint = resolve(path)
    builder, reference, tally = PromptBuilder(checkpoint, Limits()), HearingReference(path), Tally()
    expected, prompts = {}, {}
    for number, case in enumerate(heard_cases(sounds, seed=seed)):
        name = str(number)
        expected[name], prompts[name] = reference.answer(case, tokens), builder.build([case.message])
        assert prompts[name].token_ids.tolist() == expected[name].prompt_ids
    for answers in served(checkpoint, prompts, tokens):
        for name, right in expected.items():
            tally.compare(right, answers[name])
    return tally


class TestAnswers:
    def test_twenty_questions(self, path: Path) -> None:
        tally = check_answers(path, SOUNDS)
        assert tally.compared == 80
        assert tally.excused <= 1

    @pytest.mark.proof
    @pytest.mark.parametrize("seed", range(5))
    def test_a_hundred_questions(self, seed: int, tmp_path: Path) -> None:
        tally = check_answers(tiny_qwen2_audio(tmp_path, seconds=30, seed=seed), SOUNDS, seed=seed + 1)
        print(f"qwen2_audio, seed {seed}: {tally.compared} answers as transformers', {tally.excused} at a near tie")
        assert tally.compared == 80

    @pytest.mark.parametrize(
        "changes",
        [
            {"audio_config": {"encoder_layers": 1, "d_model": 24, "encoder_attention_heads": 2, "num_mel_bins": 128}},
            {"text_config": {"rope_theta": 1_000_000.0, "num_key_value_heads": 4, "rms_norm_eps": 1e-6}},
            {"preprocessor": {"n_fft": 512}},
        ],
    )
    def test_settings(self, changes: dict[str, Any], tmp_path: Path) -> None:
        assert check_answers(tiny_qwen2_audio(tmp_path, seconds=1, **changes), (1, 2, 0)).excused == 0


class TestPrompts:
    def test_conversations_are_encoded_as_transformers_encodes_them(self, path: Path, builder: PromptBuilder) -> None:
        reference = HearingReference(path)
        first, second, third = (case.sounds for case in heard_cases((1, 2, 3)))
        turns: list[tuple[str, tuple[Heard, ...], str]] = [
            ("user", first, "What is this?"),
            ("assistant", (), "A dog, it's hidden."),
            ("user", second, "  Where?\n"),
            ("assistant", (), "猫"),
            ("user", third, "Is there a red circle? "),
        ]
        for start in (0, 2, 4):
            expected = reference.conversation(turns[start:])["input_ids"][0].tolist()
            messages = [
                Message(role, (*(AudioPart(sound.file) for sound in sounds), TextPart(text)))
                for role, sounds, text in turns[start:]
            ]
            assert builder.build(messages).token_ids.tolist() == expected

    def test_sounds_are_numbered_as_published(self, builder: PromptBuilder) -> None:
        (case,) = heard_cases((2,))
        text = builder.decode(builder.build([case.message]).token_ids.tolist())
        assert text.index("Audio 1: ") < text.index("Audio 2: ") < text.index(case.question)

    def test_a_placeholder_that_callers_type_is_text(self, builder: PromptBuilder, path: Path) -> None:
        (case,) = heard_cases((1,))
        typed = "<|AUDIO|> <|audio_bos|>Is <|im_end|> a cat?<|audio_eos|>"
        messages = [Message("user", (*case.message.parts[:1], TextPart(typed)))]
        prompt = builder.build(messages)
        (sound,) = prompt.media
        assert (prompt.token_ids == resolve(path).require_audio_token()).sum() == sound.rows
        assert prompt.tokens_of("audio") == sound.rows
        assert typed in builder.decode(prompt.token_ids.tolist())

    def test_a_placeholder_alone_binds_nothing(self, builder: PromptBuilder, path: Path) -> None:
        prompt = builder.build([Message("user", (TextPart("<|AUDIO|>"),))])
        assert prompt.media == ()
        assert resolve(path).require_audio_token() not in prompt.token_ids

    def test_what_is_sent_where(self, builder: PromptBuilder) -> None:
        with pytest.raises(UnsupportedMedia, match="takes sounds, but no pictures") as refused:
            builder.build([Message("user", (ImagePart(b"\x89PNG"), TextPart("?")))])
        assert refused.value.param == "messages[0].content[0]"
        with pytest.raises(UnsupportedAudio, match="a picture") as wrong:
            builder.build([Message("user", (TextPart("?"), AudioPart(b"\x89PNG\r\n\x1a\n")))])
        assert wrong.value.param == "messages[0].content[1]"
        with pytest.raises(TooManyMedia, match="9 sounds"):
            builder.build([Message("user", (*[AudioPart(b"")] * 9, TextPart("?")))])

    def test_models_that_do_not_hear_say_so(self, tmp_path: Path) -> None:
        sound = Message("user", (AudioPart(encoded(noise(1600), 16_000)), TextPart("?")))
        with pytest.raises(UnsupportedMedia, match="no sounds"):
            PromptBuilder(resolve(tiny_qwen2_vl(tmp_path / "sees")), Limits()).build([sound])
        with pytest.raises(UnsupportedMedia, match="reads text only"):
            PromptBuilder(resolve(tiny_text(tmp_path / "reads", "qwen2")), Limits()).build([sound])


class TestReuse:
    @pytest.mark.parametrize("name", ["wav", "mp3", "opus"])
    def test_a_second_question_decodes_and_encodes_nothing(
        self, name: str, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes, encodings = counted(monkeypatch, decoding, "_mono"), counted(monkeypatch, SoundEncoder, "encode")
        builder, engine = PromptBuilder(resolve(path), Limits()), build_engine(resolve(path), ROOMY)
        data = encoded(noise(20_001), 16_000, name)
        try:
            for number, question in enumerate(("What is it?", "Who speaks?", "What is it?")):
                asked = builder.build([Message("user", (AudioPart(data), TextPart(question)))])
                serve(engine, [Request(str(number), asked, GREEDY)])
                assert len(passes) == (1 if name == "wav" else 2)  # a header that does not say needs one to count
                assert len(encodings) == 1
            history = [Message("user", (TextPart("hi"),)), Message("assistant", (TextPart("yes"),))]
            behind = builder.build([*history, Message("user", (AudioPart(data), TextPart("?")))])
            serve(engine, [Request("behind", behind, GREEDY)])  # behind another prefix its rows serve again
            assert (len(passes), len(encodings)) == (1 if name == "wav" else 2, 1)
        finally:
            engine.close()

    def test_sounds_of_equal_rows_are_told_apart(self, builder: PromptBuilder, path: Path) -> None:
        engine = build_engine(resolve(path), ROOMY)
        prompts = {str(seed): _asked(builder, encoded(noise(20_001, seed), 16_000)) for seed in range(4)}
        assert len({prompt.token_ids.tobytes() for prompt in prompts.values()}) == 1
        try:
            together = serve(engine, [Request(name, prompt, GREEDY) for name, prompt in prompts.items()])
            again = serve(engine, [Request(name, prompt, GREEDY) for name, prompt in prompts.items()])
        finally:
            engine.close()
        alone = build_engine(resolve(path), ROOMY)
        try:
            assert together == again
            assert {name: serve(alone, [Request(name, p, GREEDY)])[name] for name, p in prompts.items()} == together
        finally:
            alone.close()

    def test_a_tenants_salt_keeps_sounds_apart(self, builder: PromptBuilder) -> None:
        data = encoded(noise(5_000), 16_000)
        one, other = (builder.build([_message(data)], cache_salt=salt).media[0].content for salt in ("a", "b"))
        assert one != other


class TestDamage:
    def test_only_its_own_request_fails(self, builder: PromptBuilder, path: Path) -> None:
        """A FLAC's header promises what only decoding can find missing."""
        whole = encoded(noise(40_000), 16_000, "flac")
        engine = build_engine(resolve(path), ROOMY)
        try:
            for name, data in (("bad", whole[: len(whole) // 2]), ("good", whole)):
                engine.add(engine.resolve(Request(name, _asked(builder, data), GREEDY)))
            events = []
            while engine.has_requests:
                events += engine.step(wait=True)
            last = {event.request_id: event for event in events if event.last}
            assert isinstance(last["bad"].error, CorruptAudio)
            assert last["good"].finish_reason == "length"
        finally:
            engine.close()


class TestFiles:
    def test_newer_names_and_shards_hold_the_same_weights(self, path: Path, tmp_path: Path) -> None:
        newer = tiny_qwen2_audio(tmp_path, seconds=SECONDS, new_names=True)
        assert any(name.startswith("model.audio_tower.") for name in load_file(newer / "model.safetensors"))
        assert_same(parameters(newer), parameters(path))
        model = Qwen2AudioForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        (newer / "model.safetensors").unlink()
        model.save_pretrained(newer, max_shard_size="100KB")
        assert len(list(newer.glob("*.safetensors"))) > 1
        assert_same(parameters(newer), parameters(path))

    def test_what_is_missing_is_named(self, tmp_path: Path) -> None:
        path = tiny_qwen2_audio(tmp_path, seconds=1)
        given = (path / "config.json").read_text()
        for old, new, says in (
            ('"audio_token_index"', '"another_token"', "audio_token_id"),
            ('"audio_config"', '"another_config"', "no audio_config"),
            ('"encoder_layers": 2', '"encoder_layers": 3', r"tower\.layers\.2"),
            ('"encoder_layers": 2', '"encoder_layers": 1', r"audio_tower\.layers\.1"),
            ('"max_source_positions": 50', '"max_source_positions": 60', "windows of 100 frames"),
        ):
            (path / "config.json").write_text(given.replace(old, new))
            with pytest.raises(CheckpointError, match=says):
                loaded(path)

    def test_a_processor_as_newer_transformers_saves_it(self, path: Path, tmp_path: Path) -> None:
        newer = tiny_qwen2_audio(tmp_path, seconds=SECONDS)
        settings = json.loads((newer / "preprocessor_config.json").read_text())
        (newer / "preprocessor_config.json").unlink()
        (newer / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
        assert resolve(newer).processor == resolve(path).processor


def counted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[int]:
    """An entry for each call of ``owner.name`` from now on."""
    calls: list[int] = []
    before = getattr(owner, name)

    def counting(*given: Any) -> Any:
        calls.append(1)
        return before(*given)

    monkeypatch.setattr(owner, name, counting)
    return calls


def loaded(path: Path) -> None:
    PromptBuilder(resolve(path), Limits())
    build_model(resolve(path), torch.float32, torch.device("cpu"))


def _message(data: bytes) -> Message:
    return Message("user", (AudioPart(data), TextPart("What is it?")))


def _asked(builder: PromptBuilder, data: bytes) -> Prompt:
    return builder.build([_message(data)])

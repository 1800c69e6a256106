import dataclasses
import gc
import itertools
import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from delta_transcoders.activations import writing
from delta_transcoders.activations.cache import ActivationCache
from delta_transcoders.activations.layout import CacheMeta, disk_bytes
from delta_transcoders.activations.targets import add_residuals, add_target
from delta_transcoders.activations.writing import CacheWriter, finish_cache
from delta_transcoders.dictionaries.transcoder import Transcoder
from delta_transcoders.families.sites import HOOK_SITES

D_IN, D_OUT, PER_EXAMPLE = 6, 5, 10
COMMAND = "python evaluate.py --config mine/activations.yaml"
META = CacheMeta(
    layers=(0, 2),
    d_in=D_IN,
    d_out=D_OUT,
    dtype="float32",
    hook_site=HOOK_SITES["gemma_scope"],
    text_policy="prompt_target_eos",
    model_fingerprint="model-a",
    model_dtype="float32",
    tokenizer_fingerprint="tokenizer-a",
    subsets=("tool", "copy"),
    n_examples={"train": 30, "validation": 4},
    texts_sha256={"train": "t", "validation": "v"},
    token_policy="all",
)


def example(split, i):
    """Activations by layer and index columns of one example of 10 tokens, a function of i alone."""
    generator = torch.Generator().manual_seed(i + 1000 * (split == "train"))

    def draw(d):
        return torch.randn(PER_EXAMPLE, d, generator=generator)

    activations = {layer: (draw(D_IN), draw(D_OUT)) for layer in META.layers}
    index = {
        "token_ids": torch.arange(PER_EXAMPLE) + 7,
        "positions": torch.arange(PER_EXAMPLE) + 1,
        "example_ids": torch.full((PER_EXAMPLE,), i),
        "subset_ids": torch.full((PER_EXAMPLE,), i % 2),
    }
    return activations, index


def write_rank(folder, meta=META, rank=0, world_size=1):
    writer = CacheWriter(folder, meta, rank, shard_rows=64)
    for split, n in meta.n_examples.items():
        for i in range(rank, n, world_size):
            activations, index = example(split, i)
            writer.add(split, activations, **index)
    writer.finish()


def write_cache(folder, meta=META, world_size=1):
    shutil.rmtree(folder, ignore_errors=True)
    for rank in range(world_size):
        write_rank(folder, meta, rank, world_size)
    return finish_cache(folder, meta, world_size, command=COMMAND)


def random_base(d_in=D_IN, d_out=D_OUT, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    return Transcoder(
        W_enc=draw(d_in, 16),
        b_enc=draw(16),
        W_dec=draw(16, d_out),
        b_dec=draw(d_out),
        threshold=draw(16).abs(),
    )


@pytest.fixture
def cache(tmp_path):
    return write_cache(tmp_path / "activations")


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_in_a_replace(k, action):
    """Run the action in a process that is killed instead of its k-th `os.replace`; whether it was."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)  # a fork has none of its parent's threads to wait for
        counter = itertools.count()
        replace = os.replace

        def replace_or_die(*args):
            if next(counter) == k:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*args)

        os.replace = replace_or_die
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def stream(cache, layers=(0, 2), targets=(), **options):
    defaults = {"batch_tokens": 16, "buffer_tokens": 75, "seed": 0, "epoch": 0}
    return cache.stream("train", layers, targets, **{**defaults, **options})


class TestWriting:
    def test_round_trip(self, cache):
        reopened = ActivationCache(cache.folder)
        assert reopened.meta == META
        for split, n in META.n_examples.items():
            assert reopened.n_tokens(split) == n * PER_EXAMPLE
            examples = [example(split, i) for i in range(n)]
            index = reopened.index(split)
            for name, column in index.items():
                assert torch.equal(
                    column.long(), torch.cat([columns[name] for _, columns in examples])
                )
            for layer in META.layers:
                loaded = reopened.load(split, layer)
                for k, name in enumerate("xy"):
                    expected = torch.cat([activations[layer][k] for activations, _ in examples])
                    assert torch.equal(loaded[name], expected)

    def test_dtype_of_the_cache(self, tmp_path):
        cache = write_cache(tmp_path, dataclasses.replace(META, dtype="bfloat16"))
        expected = torch.cat([example("train", i)[0][2][1] for i in range(30)])
        assert torch.equal(cache.load("train", 2)["y"], expected.bfloat16())

    def test_two_processes_write_each_example_once(self, tmp_path, cache):
        other = write_cache(tmp_path / "two", world_size=2)
        ids = other.index("train")["example_ids"]
        assert (ids.bincount() == PER_EXAMPLE).all()
        order = ids.argsort(stable=True)
        assert torch.equal(other.load("train", 2)["x"][order], cache.load("train", 2)["x"])

    def test_a_repeated_a_missing_and_a_foreign_example_are_refused(self, tmp_path):
        for n_examples, repeated, problem in (
            (30, 3, r"1 of 30 train examples were captured twice, example_ids \[3\]"),
            (32, None, r"2 of 32 train examples are missing, example_ids \[30, 31\]"),
            (29, None, r"1 of 29 train examples were not asked for, example_ids \[29\]"),
        ):
            shutil.rmtree(tmp_path, ignore_errors=True)
            writer = CacheWriter(tmp_path, META, shard_rows=64)
            for i in [*range(30), *([] if repeated is None else [repeated])]:
                activations, index = example("train", i)
                writer.add("train", activations, **index)
            writer.finish()
            meta = dataclasses.replace(META, n_examples={"train": n_examples, "validation": 0})
            with pytest.raises(ValueError, match=problem):
                finish_cache(tmp_path, meta, command=COMMAND)
            with pytest.raises(FileNotFoundError):
                ActivationCache(tmp_path)

    def test_a_process_that_did_not_finish(self, tmp_path):
        shutil.rmtree(tmp_path, ignore_errors=True)
        write_rank(tmp_path, rank=0, world_size=2)
        with pytest.raises(ValueError, match="process 1 of 2 has not finished"):
            finish_cache(tmp_path, META, world_size=2, command=COMMAND)

    @pytest.mark.parametrize("k", [0, 1, 7, 17])
    def test_killed_in_any_write_leaves_no_cache(self, cache, monkeypatch, k):
        """Even over a finished one: the older manifest must not describe the new shards."""
        saves = iter(range(1000))
        save = writing.save_tensors

        def failing(path, tensors):
            if next(saves) == k:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_name(path.name + ".partial").write_bytes(b"half")
                raise KeyboardInterrupt
            return save(path, tensors)

        monkeypatch.setattr(writing, "save_tensors", failing)
        with pytest.raises(KeyboardInterrupt):
            write_cache(cache.folder)
        with pytest.raises(FileNotFoundError, match="make it with the study"):
            ActivationCache(cache.folder)
        monkeypatch.undo()
        again = write_cache(cache.folder)
        assert again.n_tokens("train") == 300
        assert not list(cache.folder.rglob("*.partial"))

    @pytest.mark.parametrize("k", [0, 5, 24, 25])
    def test_a_process_killed_in_mid_write_leaves_no_cache(self, cache, k):
        """SIGKILL with the k-th file, at the last the manifest, half written and not yet in place."""
        finished = cache.n_tokens("train")
        assert killed_in_a_replace(k, lambda: write_cache(cache.folder))
        with pytest.raises(FileNotFoundError, match="no finished activation cache there"):
            ActivationCache(cache.folder)
        assert write_cache(cache.folder).n_tokens("train") == finished

    @pytest.mark.parametrize("k", [0, 1, 4, 11, 12, 17])
    def test_a_writer_goes_on_after_the_last_shard_of_a_killed_one(
        self, cache, tmp_path, monkeypatch, k
    ):
        """Examples of 10 tokens and shards of 64 end apart, so that one is in two shards."""
        folder = tmp_path / "killed"
        saves, save = itertools.count(), writing.save_tensors

        def failing(path, tensors):
            if next(saves) == k:
                raise KeyboardInterrupt
            return save(path, tensors)

        monkeypatch.setattr(writing, "save_tensors", failing)
        with pytest.raises(KeyboardInterrupt):
            write_rank(folder)
        monkeypatch.undo()
        writer, skipped = CacheWriter(folder, META, shard_rows=64), 0
        assert writer.n_written == min(k // 3, 4) * 64 + 44 * (k >= 15)
        for split, n in META.n_examples.items():
            for i in range(n):
                if writer.skip(split):
                    skipped += 1
                else:
                    activations, index = example(split, i)
                    writer.add(split, activations, **index)
        writer.finish()
        assert skipped == (0, 6, 12, 19, 25, 30)[k // 3]  # three files a shard
        finish_cache(folder, META, command=COMMAND)
        ours, theirs = (
            {path.relative_to(whole): data for path, data in snapshot(whole).items()}
            for whole in (folder, cache.folder)
        )
        assert ours == theirs

    def test_non_finite_values_name_layer_and_shard(self, tmp_path):
        shutil.rmtree(tmp_path, ignore_errors=True)
        writer = CacheWriter(tmp_path, META, shard_rows=64)
        activations, index = example("train", 0)
        activations[2][1][4, 1] = torch.nan
        writer.add("train", activations, **index)
        with pytest.raises(ValueError, match=r"layer 2, shard train/r0-00000: y .*float32"):
            writer.finish()

    def test_float16_overflow_is_caught(self, tmp_path):
        shutil.rmtree(tmp_path, ignore_errors=True)
        writer = CacheWriter(tmp_path, dataclasses.replace(META, dtype="float16"))
        activations, index = example("train", 0)
        activations[0][0][0, 0] = 1e5
        writer.add("train", activations, **index)
        with pytest.raises(ValueError, match=r"layer 0, shard train/r0-00000: x .*float16"):
            writer.finish()

    def test_layers_other_than_announced(self, tmp_path):
        activations, index = example("train", 0)
        with pytest.raises(ValueError, match=r"layers \[0\], the cache is for \[0, 2\]"):
            CacheWriter(tmp_path, META).add("train", {0: activations[0]}, **index)

    def test_disk_bytes_is_what_it_takes(self, cache):
        files = list(cache.folder.rglob("*.safetensors"))
        told = disk_bytes(340, 2, D_IN, D_OUT, "float32", n_targets=0)
        headers = 400 * len(files)
        assert told <= sum(file.stat().st_size for file in files) <= told + headers


class TestRefusals:
    def test_mismatch_names_field_values_and_command_and_touches_nothing(self, cache):
        before = snapshot(cache.folder)
        cache.expect(**vars(META))
        with pytest.raises(ValueError) as error:
            cache.expect(tokenizer_fingerprint="tokenizer-a", model_fingerprint="model-b")
        for part in ("model_fingerprint", "model-a", "model-b", f"`{COMMAND}`"):
            assert part in str(error.value)
        with pytest.raises(ValueError, match=r"hook_site = .*gemma_scope.*original"):
            cache.expect(hook_site=HOOK_SITES["original"])
        assert snapshot(cache.folder) == before

    @pytest.mark.parametrize("pattern", ["train/index-*", "train/layer_2/xy-*", "*/layer_0/res*"])
    def test_truncated_or_missing_file(self, cache, pattern):
        add_residuals(cache, 0, "p0.5", random_base(), {"hash": "h"})
        file = sorted(cache.folder.glob(pattern))[1]
        content = file.read_bytes()
        file.write_bytes(content[:-3])
        with pytest.raises(ValueError, match=f"{file.name} has {len(content) - 3} bytes instead"):
            ActivationCache(cache.folder)
        file.unlink()
        with pytest.raises(ValueError, match=f"{file.name} is missing"):
            ActivationCache(cache.folder)

    def test_an_older_cache_is_refused_whatever_its_manifest_lacks(self, cache):
        path = cache.folder / "manifest.json"
        path.write_text(json.dumps({"format_version": 1}))
        hint = "rebuild it with `python evaluate.py --config …/activations.yaml`"
        with pytest.raises(ValueError, match=f"format_version = 1, expected 2; {hint}"):
            ActivationCache(cache.folder)

    @pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"format_version": 2, "meta": {}}'])
    def test_a_damaged_manifest_is_named(self, cache, damage):
        (cache.folder / "manifest.json").write_text(damage)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged.*make it with the study"):
            ActivationCache(cache.folder)

    def test_a_damaged_shard_of_the_right_size_is_named(self, cache):
        file = sorted(cache.folder.glob("train/layer_0/xy-*"))[0]
        file.write_bytes(bytes(file.stat().st_size))
        with pytest.raises(ValueError, match=f"{file.name} is damaged .*; rebuild the cache with"):
            ActivationCache(cache.folder).load("train", 0)

    def test_layer_and_target_that_are_not_there(self, cache):
        with pytest.raises(ValueError, match="layer 1 among them"):
            cache.load("train", 1)
        with pytest.raises(ValueError, match="layer 7 among them"):
            next(stream(cache, layers=[0, 7]))
        add_residuals(cache, 0, "p0.5", random_base(), {"hash": "h"})
        with pytest.raises(ValueError, match=r"layer 0 has no target 'residual-p1', only \['resi"):
            next(stream(cache, layers=[0], targets=["residual-p1"]))
        with pytest.raises(ValueError, match="layer 2 has no target"):
            next(stream(cache, targets=["residual-p0.5"]))


class TestTargets:
    def test_residual_is_y_minus_base_of_x(self, cache):
        base = random_base()
        fits = add_residuals(cache, 2, "p0.5", base, {"hash": "h", "path": "somewhere"})
        for split in ("train", "validation"):
            loaded = ActivationCache(cache.folder).load(split, 2, ("x", "y", "residual-p0.5"))
            x, y, residual = loaded.values()
            pieces = [
                y[s.row : s.row + s.stop] - base(x[s.row : s.row + s.stop])
                for s in cache.shards(split)
            ]
            assert torch.equal(residual, torch.cat(pieces))
            fvu = residual.square().sum() / (y - y.mean(0)).square().sum()
            assert fits[split].fvu == pytest.approx(fvu.item(), rel=1e-5)
            cosine = torch.cosine_similarity(y, base(x)).mean()
            assert fits[split].cosine == pytest.approx(cosine.item(), rel=1e-5)
            l0 = (base.encode(x) > 0).sum(1).double().mean()
            assert fits[split].l0 == pytest.approx(l0.item())
        assert cache.target("residual-p0.5", 2)["identity"]["path"] == "somewhere"

    def test_what_describes_the_same_base_may_change(self, cache):
        """Where it lies does not matter; what older code did not say of it is written down."""
        base = random_base()
        fits = add_residuals(cache, 0, "p0.5", base, {"hash": "h", "average_l0": 8})
        before = snapshot(cache.folder)
        elsewhere = {"hash": "h", "average_l0": 8, "file": "layer_0/params.npz", "source": "copy"}
        assert add_residuals(cache, 0, "p0.5", base, elsewhere) == fits
        assert snapshot(cache.folder) == before

        later = elsewhere | {"hook_site": "gemma_scope"}
        assert add_residuals(cache, 0, "p0.5", base, later) == fits
        assert ActivationCache(cache.folder).target("residual-p0.5", 0)["identity"] == later
        changed = {
            path.name for path, data in snapshot(cache.folder).items() if data != before[path]
        }
        assert changed == {"manifest.json"}

    def test_same_base_is_not_computed_again_and_another_one_replaces_it(self, cache):
        base = random_base()
        fits = add_residuals(cache, 0, "p0.5", base, {"hash": "h"})
        before = snapshot(cache.folder)
        broken = random_base(seed=1)
        broken.W_dec.fill_(torch.nan)
        assert add_residuals(cache, 0, "p0.5", broken, {"hash": "h"}) == fits
        assert snapshot(cache.folder) == before

        add_residuals(cache, 0, "p0.5", random_base(seed=2), {"hash": "other"})
        x, y, residual = cache.load("validation", 0, ("x", "y", "residual-p0.5")).values()
        torch.testing.assert_close(residual, y - random_base(seed=2)(x))

    @pytest.mark.parametrize("k", range(9))
    def test_a_process_killed_while_adding_a_target_leaves_the_rest(self, cache, k):
        """The first replacement withdraws the older target, the last enters the new one."""
        add_residuals(cache, 0, "p0.5", random_base(), {"hash": "h"})
        other = random_base(seed=2)

        def add():
            add_residuals(ActivationCache(cache.folder), 0, "p0.5", other, {"hash": "other"})

        killed = killed_in_a_replace(k, add)
        reopened = ActivationCache(cache.folder)
        entry = reopened.target("residual-p0.5", 0)
        if not killed:
            assert entry["identity"]["hash"] == "other"
        elif k == 0:
            assert entry["identity"]["hash"] == "h"
        else:
            assert entry is None
        add()
        x, y, residual = (
            ActivationCache(cache.folder).load("train", 0, ("x", "y", "residual-p0.5")).values()
        )
        torch.testing.assert_close(residual, y - other(x))

    def test_a_base_of_other_widths_is_refused(self, cache):
        before = snapshot(cache.folder)
        with pytest.raises(ValueError, match=r"= \[7, 5\], the cache .* \[6, 5\]"):
            add_residuals(cache, 0, "p0.5", random_base(d_in=7), {"hash": "h"})
        assert snapshot(cache.folder) == before

    def test_a_base_that_gives_nan_leaves_the_cache_as_it_was(self, cache):
        before = snapshot(cache.folder)
        broken = random_base()
        broken.b_dec[0] = torch.nan
        with pytest.raises(ValueError, match=r"layer 2, shard train/r0-00000: residual-p0.5"):
            add_residuals(cache, 2, "p0.5", broken, {"hash": "h"})
        assert snapshot(cache.folder) == before

    def test_nan_on_disk_names_layer_and_shard(self, cache):
        file = cache.folder / "train/layer_2/xy-r0-00001.safetensors"
        tensors = load_file(file)
        tensors["x"][3, 3] = torch.inf
        save_file(tensors, file)
        for read in (
            lambda: list(stream(cache)),
            lambda: add_residuals(cache, 2, "p0.5", random_base(), {"hash": "h"}),
        ):
            with pytest.raises(ValueError, match=r"layer 2, shard train/r0-00001: x"):
                read()

    def test_any_function_can_be_subtracted(self, cache):
        weight = torch.eye(D_IN, D_OUT)
        add_target(cache, 0, "mlp_difference", {"hash": "m"}, lambda x: (x @ weight, 0))
        x, y, difference = cache.load("train", 0, ("x", "y", "mlp_difference")).values()
        torch.testing.assert_close(difference, y - x @ weight)


class TestStream:
    @pytest.mark.parametrize("buffer_tokens", [16, 75, 1000])
    def test_every_row_once_with_its_own_values_in_all_layers(self, cache, buffer_tokens):
        for key, seed in (("a", 0), ("b", 1)):
            for layer in META.layers:
                add_residuals(cache, layer, key, random_base(seed=seed + layer), {"hash": key})
        names = ["residual-a", "residual-b"]
        whole = [cache.load("train", layer, ("x", *names)) for layer in META.layers]
        batches = list(stream(cache, targets=names, buffer_tokens=buffer_tokens))
        for batch in batches:
            for i in range(2):
                assert torch.equal(batch.x_LBI[i], whole[i]["x"][batch.rows_B])
                for j, name in enumerate(names):
                    assert torch.equal(batch.targets_TBD[2 * i + j], whole[i][name][batch.rows_B])
        assert sorted(torch.cat([batch.rows_B for batch in batches]).tolist()) == list(range(300))
        sizes = [len(batch.rows_B) for batch in batches]
        assert len(sizes) == cache.n_batches("train", 16) == 19
        assert 15 <= min(sizes) <= max(sizes) <= 16

    def test_order_depends_on_seed_and_epoch_alone(self, cache):
        def rows(**options):
            return torch.cat([batch.rows_B for batch in stream(cache, **options)]).tolist()

        assert rows() == rows()
        assert rows(layers=[2]) == rows()
        assert len({tuple(rows(seed=s, epoch=e)) for s in (0, 1) for e in (0, 1)}) == 4

    def test_order_is_shuffled_over_the_whole_split(self, cache):
        batches = list(stream(cache, buffer_tokens=100))
        rows = torch.cat([batch.rows_B for batch in batches])
        assert rows.diff().abs().float().mean() > 60  # 100 for a random permutation of 300
        assert batches[0].rows_B.max() - batches[0].rows_B.min() > 150

    def test_goes_on_from_any_batch(self, cache):
        whole = list(stream(cache))
        for start in (1, 4, 5, 18, 19):
            rest = list(stream(cache, start_batch=start))
            assert len(rest) == len(whole) - start
            for a, b in zip(whole[start:], rest, strict=True):
                assert torch.equal(a.rows_B, b.rows_B) and torch.equal(a.x_LBI, b.x_LBI)

    @pytest.mark.parametrize("world_size", [2, 3])
    def test_processes_share_the_rows_and_take_equally_many_steps(self, cache, world_size):
        ranks = [list(stream(cache, rank=r, world_size=world_size)) for r in range(world_size)]
        assert {len(batches) for batches in ranks} == {cache.n_batches("train", 16, world_size)}
        rows = torch.cat([batch.rows_B for batches in ranks for batch in batches])
        assert sorted(rows.tolist()) == list(range(300))

    def test_memory_is_the_buffer_and_a_batch(self, tmp_path, monkeypatch):
        """A cache of four times the buffer, counted at some reads and at every batch."""
        shutil.rmtree(tmp_path, ignore_errors=True)
        meta = dataclasses.replace(
            META, d_in=64, d_out=64, n_examples={"train": 1, "validation": 0}
        )
        writer, n = CacheWriter(tmp_path, meta, shard_rows=100), 2000
        columns = {k: torch.zeros(n, dtype=torch.int64) for k in example("train", 0)[1]}
        columns["positions"] = torch.arange(n)
        writer.add("train", {k: (torch.randn(n, 64),) * 2 for k in meta.layers}, **columns)
        writer.finish()
        del writer
        cache = finish_cache(tmp_path, meta, command=COMMAND)

        def resident():
            tensors = [t for t in gc.get_objects() if type(t) is torch.Tensor and t.ndim >= 2]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
            return sum(storage.nbytes() for storage in storages.values())

        baseline, peak = resident(), [0]
        rows, reads = ActivationCache.rows, itertools.count()

        def counted(*args):
            tensor = rows(*args)
            if next(reads) % 31 == 0:
                peak[0] = max(peak[0], resident() - baseline)
            return tensor

        monkeypatch.setattr(ActivationCache, "rows", counted)
        n_rows = 0
        for batch in stream(cache, buffer_tokens=500, batch_tokens=50):
            peak[0] = max(peak[0], resident() - baseline)
            n_rows += len(batch.rows_B)
        row = 2 * 64 * 4  # x of two layers, float32
        assert n_rows == n
        assert 500 * row <= peak[0] <= (500 + 100) * row

    def test_impossible_sizes(self, cache):
        with pytest.raises(
            ValueError, match="batch_tokens is 80, expected 1 to buffer_tokens = 75"
        ):
            next(stream(cache, batch_tokens=80))
        with pytest.raises(ValueError, match="300 train tokens are too few"):
            next(stream(cache, world_size=301))

"""The main job: pictures and a backbone in, a run folder out."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np


def tune_pictures(pictures, out, *, backbone, plan=None, batch_size=32, seed=0, callbacks=()):
    """Fine-tune a backbone on pictures and leave a run folder.

    The model is trained by ``plan``, measured on the test pictures (on the validation pictures where there
    are none) and written with all that belongs to it. Given again with the same arguments after it was cut
    off, even by ``kill -9``, it goes on, and the final weights have the same bits as without the cut, if
    ``reproducible(seed)`` was called before the backbone was built.

    Args:
        pictures: from :func:`thaw.images`; its ``train`` may have an ``augment``.
        out: the run folder; made if need be.
        backbone: from :func:`thaw.backbone`, for pictures of the same size. With its head, which is taken off, it
            is measured what the tuning makes it forget. An :class:`thaw.OldTask`, as :func:`thaw.old_task` opens
            one, also brings pictures of what it knew before, and a budget of forgetting.
        plan: a :class:`thaw.Plan`; or an :class:`thaw.advising.advise.Advisor`, which looks for one first; ``None`` for
            the usual advisor. The advice is kept: a run that goes on does not look for another.
        batch_size: pictures in a batch.
        seed: of the order, the augmentation, and the intervals of the measurement.
        callbacks: Keras callbacks, as in :func:`thaw.tune`.

    Returns:
        ``(model, metrics, history)``: a plain ``keras.Model``, what :func:`thaw.evaluate` measured on the split
        named by ``metrics["split"]``, and the ``keras.callbacks.History``. ``metrics["retention"]`` says what is
        forgotten, where that can be measured: ``before``, ``after`` and ``forgotten``, with intervals; with a budget
        also whether the run is ``inside`` it, and what was ``chosen`` where its best epoch was not.
        ``metrics["moved"]`` says how far every stage of the written model is from where it began;
        ``metrics["moved_in_phases"]`` how far each phase moved it, whatever was made of it afterwards.

    Raises:
        ValueError: a mistake found before the first step, or a folder that holds another run.
        FloatingPointError: the training diverged; the last good weights are in ``last-good.keras``.
        OSError: the disk is full.

    Example:
        >>> from thaw import Plan, backbone, images, tune_pictures
        >>> pictures = images("photos")                                     # doctest: +SKIP
        >>> model, metrics, history = tune_pictures(                        # doctest: +SKIP
        ...     pictures, "runs/photos", backbone=backbone(), plan=Plan.named("probe_then_tune"))
    """
    import keras

    from thaw.advising.advise import Advisor
    from thaw.advising.trials import begin_anew
    from thaw.jobs.advised_plan import RECORD, advised_plan
    from thaw.jobs.forgetting import Forgetting
    from thaw.jobs.old_task import OldTask
    from thaw.jobs.picture_model import picture_model
    from thaw.jobs.picture_size import picture_size
    from thaw.measuring.evaluate import evaluate
    from thaw.shipping.lock_run import lock_run
    from thaw.shipping.run_folder import refuse_finished, write_run
    from thaw.shipping.write_atomically import write_atomically
    from thaw.stages import stages_of
    from thaw.tuning.movement import movement, snapshot
    from thaw.tuning.tune import tune

    out = Path(out)
    old = OldTask.of(backbone)
    backbone = old.backbone
    train = pictures.train.weighted(pictures.class_weight)
    picture_size(backbone)
    refuse_finished(out)
    with lock_run(out):
        refuse_finished(out)
        work = out / "unfinished"
        model = picture_model(backbone, len(pictures.labels), seed)
        forgetting = Forgetting(old, model, pictures, work, batch_size=batch_size, seed=seed)  # may find a mistake
        advisor = Advisor(minutes=None, batch_size=batch_size, seed=seed) if plan is None else plan
        if isinstance(advisor, Advisor):
            # From random weights everything would be forgotten.
            scratch = advisor.scratch and old.max_forgetting is None
            advisor = dataclasses.replace(advisor, callbacks=(*advisor.callbacks, *callbacks), scratch=scratch)
        advised = advised_plan(advisor, model, (train, pictures.validation), work)
        plan = advised.plan
        stages = stages_of(model)
        begin = snapshot(stages)
        if advised.scratch:  # after what is forgotten was looked at
            begin_anew(model, train, seed)
        board = keras.callbacks.TensorBoard(out / "tensorboard", write_graph=False)
        try:
            history = tune(
                model,
                plan,
                (train, pictures.validation),
                batch_size=batch_size,
                seed=seed,
                callbacks=[*forgetting.callbacks, *callbacks, board],
                folder=work,
            )
        except FloatingPointError as error:
            model.compiled = False
            kept = write_atomically(out / "last-good.keras", model.save)
            raise FloatingPointError(f"{error} The last good weights are in {kept}.") from error
        forgotten = forgetting.settle(plan)
        split = "test" if pictures.test is not None else "validation"
        metrics = {"split": split} | evaluate(
            model, getattr(pictures, split), labels=pictures.labels, batch_size=batch_size, seed=seed
        )
        measured = getattr(pictures, split).y
        metrics["moved"] = [dataclasses.asdict(stage) for stage in movement(stages, begin)]
        metrics["moved_in_phases"] = history.moved
        if forgotten is not None:
            metrics["retention"] = forgotten
        metrics["majority"] = float(np.bincount(measured).max() / len(measured))
        low = metrics["accuracy"]["low"]
        if low is None or low <= metrics["majority"]:  # a single test picture allows no interval
            metrics["notes"].append(
                f"The accuracy cannot be told from {metrics['majority']:.3f}, which always naming the commonest class "
                "gives."
            )
        metrics["notes"] = [*pictures.notes, *advised.notes, *history.notes, *forgetting.notes, *metrics["notes"]]
        if advised.advice is not None:
            text = json.dumps(advised.advice, indent=2, ensure_ascii=False) + "\n"
            write_atomically(out / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
        # Not compiled: a fresh optimizer in the file would make Keras warn whoever opens it.
        model.compiled = False
        write_run(
            out,
            model,
            pictures.labels,
            plan=plan.to_toml(),
            tables={
                "history": {"epoch": [epoch + 1 for epoch in history.epoch], **history.history},
                "quarantine": {
                    "path": [bad.path for bad in pictures.quarantine],
                    "reason": [bad.reason for bad in pictures.quarantine],
                },
            },
            metrics=metrics,
            about={"seed": seed, "data_sha256": pictures.digest},
        )
        shutil.rmtree(work, ignore_errors=True)
    return model, metrics, history

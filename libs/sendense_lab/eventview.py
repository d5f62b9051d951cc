"""Events as vSphere's data objects, and which of them a client's filter selects."""

from __future__ import annotations

from typing import Any

from pyVmomi import vim

from sendense_lab.events import LabEvent

EX_PREFIX = "com."


def event_object(event: LabEvent) -> Any:
    """Returns an event as vim.event.Event."""
    fields: dict[str, Any] = {
        "key": event.key,
        "chainId": event.key,
        "createdTime": event.created,
        "userName": "LAB.LOCAL\\sendense",
        "fullFormattedMessage": event.message,
        "vm": vim.event.VmEventArgument(name=event.name, vm=vim.VirtualMachine(event.vm)),
    }
    if event.kind.startswith(EX_PREFIX):
        return vim.event.EventEx(
            **fields,
            eventTypeId=event.kind,
            severity="info",
            objectId=event.vm,
            objectType=vim.VirtualMachine,
            objectName=event.name,
        )
    if "." in event.kind:
        return vim.event.TaskEvent(**fields, info=_task_info(event))
    made = getattr(vim.event, event.kind)(**fields, template=False)
    if isinstance(made, vim.event.VmReconfiguredEvent):
        made.configSpec = vim.vm.ConfigSpec()
    return made


def _task_info(event: LabEvent) -> Any:
    return vim.TaskInfo(
        key=f"task-event-{event.key}",
        task=vim.Task(f"task-event-{event.key}"),
        descriptionId=event.kind,
        entity=vim.VirtualMachine(event.vm),
        entityName=event.name,
        state="success",
        cancelled=False,
        cancelable=False,
        reason=vim.TaskReasonUser(userName="sendense@lab.local"),
        queueTime=event.created,
        startTime=event.created,
        completeTime=event.created,
        eventChainId=event.key,
    )


def selects(spec: Any, event: LabEvent) -> bool:
    """Whether a vim.event.EventFilterSpec is about an event: its entity, time and types."""
    return _about(spec.entity, event) and _within(spec.time, event) and _of_type(spec, event)


def _about(by_entity: Any, event: LabEvent) -> bool:
    if by_entity is None:
        return True
    if isinstance(by_entity.entity, vim.VirtualMachine):
        return bool(by_entity.entity._GetMoId() == event.vm)  # noqa: SLF001 - pyVmomi offers no other name for it
    return str(by_entity.recursion) != "self"  # every VM is below every folder that is asked about


def _within(by_time: Any, event: LabEvent) -> bool:
    if by_time is None:
        return True
    begin, end = by_time.beginTime, by_time.endTime
    return (begin is None or event.created >= begin) and (end is None or event.created <= end)


def _of_type(spec: Any, event: LabEvent) -> bool:
    if not spec.eventTypeId and not spec.type:
        return True
    names = {event.kind, f"vim.event.{event.kind}", _class_name(event), f"vim.event.{_class_name(event)}"}
    if names & set(spec.eventTypeId or []):
        return True
    made = event_object(event)
    return any(isinstance(made, wanted) for wanted in spec.type or [])


def _class_name(event: LabEvent) -> str:
    return "EventEx" if event.kind.startswith(EX_PREFIX) else "TaskEvent" if "." in event.kind else event.kind

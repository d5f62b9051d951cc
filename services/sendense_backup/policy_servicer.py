"""The edge of PolicyService."""

from __future__ import annotations

from typing import Any

from sendense.backup.v1 import policy_pb2, policy_pb2_grpc
from sendense_backup.convert import page_size
from sendense_backup.policies import Policies
from sendense_backup.policy_convert import to_plan, to_policy, to_rules, to_run


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """PolicyService."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies

    async def ListPolicies(
        self, request: policy_pb2.ListPoliciesRequest, context: Any
    ) -> policy_pb2.ListPoliciesResponse:
        """Lists policies by name."""
        del context
        found, following = await self._policies.catalogue.policies.page(
            page_size(request.page_size), request.page_token
        )
        return policy_pb2.ListPoliciesResponse(policies=[to_policy(each) for each in found], next_page_token=following)

    async def GetPolicy(self, request: policy_pb2.GetPolicyRequest, context: Any) -> policy_pb2.Policy:
        """Returns a policy."""
        del context
        return to_policy(await self._policies.catalogue.policies.get(request.policy_id))

    async def CreatePolicy(self, request: policy_pb2.CreatePolicyRequest, context: Any) -> policy_pb2.Policy:
        """Makes a policy."""
        del context
        spec = request.spec
        return to_policy(await self._policies.create(spec.name, spec.cron, to_rules(spec), enabled=not spec.disabled))

    async def UpdatePolicy(self, request: policy_pb2.UpdatePolicyRequest, context: Any) -> policy_pb2.Policy:
        """Replaces all that a policy says."""
        del context
        spec = request.spec
        return to_policy(
            await self._policies.replace(
                request.policy_id, spec.name, spec.cron, to_rules(spec), enabled=not spec.disabled
            )
        )

    async def DeletePolicy(
        self, request: policy_pb2.DeletePolicyRequest, context: Any
    ) -> policy_pb2.DeletePolicyResponse:
        """Ends a policy."""
        del context
        await self._policies.delete(request.policy_id)
        return policy_pb2.DeletePolicyResponse()

    async def PlanPolicy(self, request: policy_pb2.PlanPolicyRequest, context: Any) -> policy_pb2.PolicyPlan:
        """Says what a policy would do."""
        del context
        return to_plan(
            await self._policies.plan(
                request.policy_id, request.vm_name, page_size(request.page_size), request.page_token
            )
        )

    async def RunPolicy(self, request: policy_pb2.RunPolicyRequest, context: Any) -> policy_pb2.PolicyRun:
        """Runs a policy now."""
        del context
        return to_run(await self._policies.run_now(request.policy_id))

    async def ListPolicyRuns(
        self, request: policy_pb2.ListPolicyRunsRequest, context: Any
    ) -> policy_pb2.ListPolicyRunsResponse:
        """Lists a policy's runs, newest first."""
        del context
        policy = await self._policies.catalogue.policies.get(request.policy_id)
        found, following = await self._policies.catalogue.policies.runs_page(
            policy.policy_id, page_size(request.page_size), request.page_token
        )
        return policy_pb2.ListPolicyRunsResponse(runs=[to_run(each) for each in found], next_page_token=following)

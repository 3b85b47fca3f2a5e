"""Whether a session's tool is logged in by now, also where nobody asks for its URL any more."""

from __future__ import annotations

from polydev.controller.machines.agent_client import AgentClient, AgentLogin
from polydev.controller.machines.watch import AgentWatch
from polydev.controller.model import Session, Vm
from polydev.controller.store.sessions import Sessions
from polydev.errors import SessionError


class LoginWatch:
    """Each look notes what the question of the look before it brought, and asks the next."""

    def __init__(self, agent: AgentClient, sessions: Sessions, vm: Vm) -> None:
        self._agent = agent
        self._sessions = sessions
        self._vm = vm
        self._watch: AgentWatch[AgentLogin] | None = None

    async def look(self) -> None:
        """Only a session whose login has been asked for is looked at."""
        session = await self._sessions.live_of_vm(self._vm.id)
        if session is None or session.state != "oauth_pending":
            return
        watch = self._watch = self._watch or self._watch_of(session)
        answer = watch.answer()
        if isinstance(answer, AgentLogin):
            try:
                await self._sessions.login_is(session.id, answer.status)
            except SessionError:
                return  # over meanwhile
        watch.ask(0)

    def _watch_of(self, session: Session) -> AgentWatch[AgentLogin]:
        return AgentWatch(lambda: self._agent.login(self._vm.vm_ip, session.provider))

    async def close(self) -> None:
        if self._watch is not None:
            await self._watch.close()

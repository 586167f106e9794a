//! Stops, as the traced thread makes them.

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::{Event, Kind, Mode, Resumed, Snapshot, Stop, Tracee, step};
use crate::errno::ENOSYS;
use crate::process::thread::Work;
use crate::signal::info::{CLD_STOPPED, CLD_TRAPPED, SI_USER, TRAP_TRACE};
use crate::signal::send::{Origin, to_thread};
use crate::signal::{SIGTRAP, SigInfo, bit};
use crate::{Registers, Thread};

/// How a stop ended.
enum Outcome {
    /// Nobody traces the thread (any more).
    Untraced,
    /// It must end.
    Killed,
    /// The tracer let it go on, with a signal or 0.
    Resumed { signal: u32, info: Option<SigInfo> },
    /// It listened, and stops anew.
    Again,
}

/// In rax while a call is under way, as Linux has it.
const NO_RESULT: u64 = (ENOSYS.code() as u64).wrapping_neg();
/// Bit of the signal in a status that tells a system call from a signal (PTRACE_O_TRACESYSGOOD).
const SYSGOOD: u32 = 0x80;
/// PTRACE_GETEVENTMSG at the two stops of a system call.
const MESSAGE_ENTRY: u64 = 1;
const MESSAGE_EXIT: u64 = 2;

/// Stops the calling thread until its tracer lets it go on.
fn halt(
    thread: &Arc<Thread>,
    registers: &mut Registers,
    kind: Kind,
    code: u32,
    info: Option<SigInfo>,
    message: Option<u64>,
) -> Outcome {
    let Some(tracee) = thread.tracee.get() else {
        return Outcome::Untraced;
    };
    step::cancel(thread);
    let outlives_kill = kind == Kind::Event(Event::Exit);
    let is_killed = || thread.work().contains(Work::EXIT) && !outlives_kill;
    let snapshot = Box::new(Snapshot::take(registers));
    {
        let mut state = tracee.state.lock();
        if state.ended {
            return Outcome::Untraced;
        }
        if is_killed() {
            return Outcome::Killed;
        }
        if kind == Kind::Event(Event::Stop) || kind == Kind::Group {
            state.trap = false;
        }
        if let Some(message) = message {
            state.message = message;
        }
        state.listening = false;
        state.stop = Some(Stop {
            kind,
            code,
            info,
            snapshot,
            reported: false,
        });
    }
    let is_group = matches!(kind, Kind::Group | Kind::Event(Event::Stop));
    let reason = if is_group { CLD_STOPPED } else { CLD_TRAPPED };
    tracee.tell(reason, code & 0x7f);
    let resumed = loop {
        let seen = thread.event_count();
        let mut state = tracee.state.lock();
        if state.stop.is_none() {
            let ended = state.ended;
            break state.resumed.take().map(|resumed| (resumed, ended));
        }
        if is_killed() {
            state.stop = None;
            return Outcome::Killed;
        }
        if state.listening && state.trap {
            let stop = state.stop.take();
            drop(state);
            if let Some(stop) = stop {
                stop.snapshot.put_back(registers);
            }
            return Outcome::Again;
        }
        drop(state);
        thread.sleep(seen, None);
    };
    // The way back must look at where the program goes on: it may not be where it was.
    thread.add_own_work(Work::SIGNAL);
    let Some((resumed, ended)) = resumed else {
        return Outcome::Untraced;
    };
    resumed.snapshot.put_back(registers);
    let Resumed {
        signal, info, step, ..
    } = resumed;
    if step && !ended {
        thread.add_own_work(Work::STEP);
    }
    let watches = !ended && (step || tracee.state.lock().mode != Mode::Run);
    thread.seccomp.set_traced(watches);
    Outcome::Resumed { signal, info }
}

/// A signal is about to be delivered: what becomes of it.
pub fn signal(thread: &Arc<Thread>, registers: &mut Registers, info: SigInfo) -> Option<SigInfo> {
    let outcome = halt(
        thread,
        registers,
        Kind::Signal,
        info.number(),
        Some(info),
        None,
    );
    let info = match outcome {
        Outcome::Untraced => return Some(info),
        Outcome::Killed | Outcome::Again | Outcome::Resumed { signal: 0, .. } => return None,
        Outcome::Resumed { signal, info } => info
            .filter(|info| info.number() == signal)
            .unwrap_or_else(|| of_tracer(thread, signal)),
    };
    if thread.signals.blocked() & bit(info.number()) != 0 {
        // As if it had just been sent.
        let _ = to_thread(thread, info, Origin::Inside);
        return None;
    }
    Some(info)
}

/// A signal that the tracer makes.
fn of_tracer(thread: &Thread, signal: u32) -> SigInfo {
    let tracee = thread.tracee.get();
    let tracer = tracee.and_then(|tracee| tracee.tracer_process.upgrade());
    let (pid, uid) = tracer.map_or((0, 0), |tracer| {
        (tracer.pid, tracer.credentials.lock().ruid)
    });
    SigInfo::user(signal, SI_USER, pid, uid)
}

/// Stops for a trap that is due (PTRACE_INTERRUPT and its like); whether there was one.
pub fn trap(thread: &Arc<Thread>, registers: &mut Registers) -> bool {
    let Some(tracee) = thread.tracee.get() else {
        return false;
    };
    if !tracee.state.lock().trap {
        return false;
    }
    let stopped_by = thread.process.signals.group.lock().stopped_by;
    let signal = if stopped_by != 0 { stopped_by } else { SIGTRAP };
    event_stop(thread, registers, signal);
    true
}

/// The process stops by job control, and this thread with it; whether the thread is traced, and so
/// goes on when its tracer says so.
pub fn group(thread: &Arc<Thread>, registers: &mut Registers, signal: u32) -> bool {
    let Some(tracee) = thread.tracee.get() else {
        return false;
    };
    let seized = tracee.state.lock().seized;
    let outcome = match seized {
        true => event_stop(thread, registers, signal),
        false => halt(thread, registers, Kind::Group, signal, None, None),
    };
    !matches!(outcome, Outcome::Untraced) && thread.tracee.is_set()
}

/// PTRACE_EVENT_STOP, again when the thread listened and something happened.
fn event_stop(thread: &Arc<Thread>, registers: &mut Registers, signal: u32) -> Outcome {
    let mut signal = signal;
    loop {
        let code = signal | (Event::Stop as u32) << 8;
        let info = own_info(thread, SIGTRAP, code);
        let kind = Kind::Event(Event::Stop);
        match halt(thread, registers, kind, code, Some(info), Some(0)) {
            Outcome::Again => {
                let stopped_by = thread.process.signals.group.lock().stopped_by;
                signal = if stopped_by != 0 { stopped_by } else { SIGTRAP };
            }
            outcome => return outcome,
        }
    }
}

/// The information of a stop that the thread makes itself.
fn own_info(thread: &Thread, signal: u32, code: u32) -> SigInfo {
    let uid = thread.process.credentials.lock().ruid;
    SigInfo::user(signal, code as i32, thread.tid(), uid)
}

/// Whether the tracer wants to know of an event.
pub fn wants(thread: &Thread, event: Event) -> bool {
    let Some(tracee) = thread.tracee.get() else {
        return false;
    };
    let options = tracee.state.lock().options;
    event.option().is_none_or(|option| options.contains(option))
}

/// Stops for an event that the tracer asked for.
pub fn event(thread: &Arc<Thread>, registers: &mut Registers, event: Event, message: u64) {
    if wants(thread, event) {
        if event != Event::Exit {
            // In the middle of a call, which has no result yet.
            registers.rax = NO_RESULT;
        }
        let code = SIGTRAP | (event as u32) << 8;
        let info = own_info(thread, SIGTRAP, code);
        halt(
            thread,
            registers,
            Kind::Event(event),
            code,
            Some(info),
            Some(message),
        );
    }
}

/// The first stop after execve, for tracers that do not ask for the event.
pub fn executed(thread: &Arc<Thread>, registers: &mut Registers, old_tid: u32) {
    let Some(tracee) = thread.tracee.get() else {
        return;
    };
    let (wants, seized) = {
        let state = tracee.state.lock();
        (state.options.contains(super::Options::EXEC), state.seized)
    };
    if wants {
        event(thread, registers, Event::Exec, old_tid.into());
    } else if !seized {
        let uid = thread.process.credentials.lock().ruid;
        let info = SigInfo::user(SIGTRAP, SI_USER, thread.process.pid, uid);
        let _ = to_thread(thread, info, Origin::Inside);
    }
}

/// A system call begins: whether it is carried out. The number and the arguments are those in
/// `registers` afterwards, and rax is the result of a call that is not.
pub fn enter_call(thread: &Arc<Thread>, registers: &mut Registers) -> bool {
    registers.rax = NO_RESULT;
    let mode = mode(thread);
    if mode == Mode::Run {
        if !thread.tracee.is_set() {
            thread.seccomp.set_traced(false);
        }
        return true;
    }
    let outcome = call_stop(thread, registers, Kind::CallEntry);
    if matches!(outcome, Outcome::Killed) || thread.work().contains(Work::EXIT) {
        return false;
    }
    mode != Mode::Emulate && registers.orig_rax as i32 != -1
}

/// And ends; its result is in rax.
pub fn leave_call(thread: &Arc<Thread>, registers: &mut Registers) {
    if thread.work().contains(Work::EXIT) {
        return;
    }
    if step::is_over_call(thread) {
        let info = SigInfo::fault(SIGTRAP, TRAP_TRACE, registers.rip);
        crate::signal::send::force(thread, info);
    } else if mode(thread) == Mode::Calls {
        call_stop(thread, registers, Kind::CallExit);
    }
}

fn mode(thread: &Thread) -> Mode {
    thread
        .tracee
        .get()
        .map_or(Mode::Run, |tracee| tracee.state.lock().mode)
}

fn call_stop(thread: &Arc<Thread>, registers: &mut Registers, kind: Kind) -> Outcome {
    let Some(tracee) = thread.tracee.get() else {
        return Outcome::Untraced;
    };
    let good = tracee
        .state
        .lock()
        .options
        .contains(super::Options::SYSGOOD);
    let code = if good { SIGTRAP | SYSGOOD } else { SIGTRAP };
    let message = match kind {
        Kind::CallEntry => MESSAGE_ENTRY,
        _ => MESSAGE_EXIT,
    };
    let info = own_info(thread, SIGTRAP, code);
    let outcome = halt(thread, registers, kind, code, Some(info), Some(message));
    if let Outcome::Resumed { signal, .. } = &outcome
        && *signal != 0
    {
        let info = of_tracer(thread, *signal);
        let _ = to_thread(thread, info, Origin::Inside);
    }
    outcome
}

/// A seccomp filter asks the tracer about the call: whether it is carried out. `None` where no tracer
/// wants to be asked.
pub fn seccomp(thread: &Arc<Thread>, registers: &mut Registers, data: u32) -> Option<bool> {
    if !wants(thread, Event::Seccomp) {
        return None;
    }
    event(thread, registers, Event::Seccomp, data.into());
    Some(registers.orig_rax as i32 != -1 && !thread.work().contains(Work::EXIT))
}

/// A single step has ended where nothing else reports it.
pub fn stepped(thread: &Arc<Thread>, registers: &mut Registers) {
    let info = SigInfo::fault(SIGTRAP, TRAP_TRACE, registers.rip);
    halt(thread, registers, Kind::Signal, SIGTRAP, Some(info), None);
}

impl Tracee {
    /// The tracer hears of a change by SIGCHLD, and in wait.
    pub(super) fn tell(&self, reason: i32, status: u32) {
        use crate::signal::SIGCHLD;
        use crate::signal::action::SA_NOCLDSTOP;
        let Some(tracer) = self.tracer_process.upgrade() else {
            return;
        };
        let is_stop = matches!(reason, CLD_STOPPED | CLD_TRAPPED);
        let action = tracer.signals.action(SIGCHLD);
        if !is_stop || action.flags & SA_NOCLDSTOP == 0 {
            let ticks = self.process.cpu_times().ticks();
            let uid = self.process.credentials.lock().ruid;
            let info = SigInfo::child(SIGCHLD, reason, self.tid(), uid, status, ticks);
            let _ = crate::signal::send::to_process(&tracer, info, Origin::Inside);
        }
        tracer
            .children_changed
            .wake(crate::sync::wait::Events::empty());
    }

    /// Lets the stopped thread go on. ESRCH where it is not stopped.
    pub fn resume(&self, mode: Mode, step: bool, signal: u32) -> crate::Result<()> {
        self.stopped(|state| {
            state.mode = mode;
            state.go_on(signal, step);
        })?;
        self.wake();
        Ok(())
    }

    pub(super) fn wake(&self) {
        if let Some(thread) = self.thread.upgrade() {
            thread.notify();
        }
    }

    /// PTRACE_LISTEN: only in a stop by job control of a seized thread. EIO.
    pub fn listen(&self) -> crate::Result<()> {
        let due = self.stopped(|state| {
            let is_event = |stop: &Stop| stop.kind == Kind::Event(Event::Stop);
            if !state.seized || !state.stop.as_ref().is_some_and(is_event) {
                return Err(crate::errno::EIO.because("not stopped by job control"));
            }
            state.listening = true;
            Ok(state.trap)
        })??;
        if due {
            self.wake();
        }
        Ok(())
    }

    /// PTRACE_INTERRUPT and SIGCONT: a seized thread reports with PTRACE_EVENT_STOP. EIO for others.
    pub fn interrupt(&self) -> crate::Result<()> {
        {
            let mut state = self.state.lock();
            if !state.seized {
                return Err(crate::errno::EIO.because("not seized"));
            }
            state.trap = true;
        }
        if let Some(thread) = self.thread.upgrade() {
            thread.add_work(Work::SIGNAL);
        }
        Ok(())
    }
}

impl super::State {
    /// The stop ends.
    pub(super) fn go_on(&mut self, signal: u32, step: bool) {
        if let Some(stop) = self.stop.take() {
            self.listening = false;
            self.resumed = Some(Resumed {
                snapshot: stop.snapshot,
                info: stop.info,
                signal,
                step,
            });
        }
    }
}

/// SIGCONT for a process: its seized threads report.
pub fn continued(process: &crate::process::Process) {
    for thread in process.live_threads() {
        if let Some(tracee) = thread.tracee.get() {
            // Those that were not seized stay as their tracer has them.
            let _ = tracee.interrupt();
        }
    }
}

/// SIGKILL for a process: stops with PTRACE_EVENT_EXIT, which outlive the order to end, end too.
pub fn killed(process: &crate::process::Process) {
    if process.group_exit().is_none() {
        return;
    }
    for thread in process.live_threads() {
        let Some(tracee) = thread.tracee.get() else {
            continue;
        };
        let mut state = tracee.state.lock();
        let is_last = |stop: &Stop| stop.kind == Kind::Event(Event::Exit);
        if state.stop.as_ref().is_some_and(is_last) {
            state.go_on(0, false);
            drop(state);
            thread.notify();
        }
    }
}

//! msgget, msgsnd, msgrcv, msgctl.

use zerocopy::IntoBytes;

use super::{Arguments, Context};
use crate::Result;
use crate::errno::EINVAL;
use crate::ipc::message::{MESSAGE_MAX, Message, QUEUE_BYTES, QUEUES, QUEUES_MAX, Queue};
use crate::ipc::{IPC_INFO, IPC_RMID, IPC_SET, IPC_STAT, Object, READ};
use crate::process::credentials::Credentials;

fn credentials(context: &Context<'_>) -> Credentials {
    context.thread.process.credentials.lock().clone()
}

pub fn msgget(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let make = |permission| Ok(Queue::new(permission));
    QUEUES.get(
        arguments.i32(0),
        arguments.u32(1),
        &credentials(context),
        |_| Ok(()),
        make,
    )
}

pub fn msgsnd(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (from, size) = (arguments.u64(1), arguments.i64(2));
    let mm = context.mm();
    let kind = arguments.pointer::<i64>(1).read(&mm)?;
    if !(0..=MESSAGE_MAX as i64).contains(&size) || arguments.i32(0) < 0 {
        return Err(EINVAL.because("bad message size or queue"));
    }
    if kind < 1 {
        return Err(EINVAL.because("message types are positive"));
    }
    let mut data = alloc::vec![0; size as usize];
    mm.read(from.wrapping_add(8), &mut data)?;
    let queue = QUEUES.find(arguments.i32(0))?;
    queue.send(context.thread, Message { kind, data }, arguments.u32(3))?;
    Ok(0)
}

pub fn msgrcv(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (to, size) = (arguments.u64(1), arguments.i64(2));
    if size < 0 || arguments.i32(0) < 0 {
        return Err(EINVAL.because("bad message size or queue"));
    }
    let size = (size as usize).min(MESSAGE_MAX);
    let queue = QUEUES.find(arguments.i32(0))?;
    let message = queue.receive(context.thread, size, arguments.i64(3), arguments.u32(4))?;
    let mm = context.mm();
    arguments.pointer::<i64>(1).write(&mm, &message.kind)?;
    mm.write(to.wrapping_add(8), &message.data)?;
    Ok(message.data.len())
}

const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;
/// Bit that old programs set for the 64-bit structures.
const IPC_64: i32 = 0x100;

pub fn msgctl(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let (id, command) = (arguments.i32(0), arguments.i32(1) & !IPC_64);
    let buffer = arguments.u64(2);
    let credentials = credentials(context);
    let mm = context.mm();
    match command {
        IPC_INFO | MSG_INFO => {
            let (queues, highest) = QUEUES.all();
            let bytes = QUEUE_BYTES as i32;
            // struct msginfo: pool, map, max, mnb, mni, ssz, tql, seg (a short).
            let mut info = [
                0,
                bytes,
                MESSAGE_MAX as i32,
                bytes,
                QUEUES_MAX.value() as i32,
                16,
                bytes,
                0xffff,
            ];
            info[0] = (QUEUES_MAX.value() as i64 * i64::from(bytes) / 1024) as i32;
            if command == MSG_INFO {
                let usage = queues.iter().map(|queue| queue.usage());
                let (messages, total) =
                    usage.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
                (info[0], info[1]) = (queues.len() as i32, messages as i32);
                info[6] = total as i32;
            }
            mm.write(buffer, info.as_bytes())?;
            Ok(highest)
        }
        IPC_STAT => {
            let queue = QUEUES.find(id)?;
            queue.permission().check(&credentials, READ)?;
            mm.write(buffer, &queue.encode())?;
            Ok(0)
        }
        MSG_STAT | MSG_STAT_ANY => {
            let (id, queue) = QUEUES.by_index(id)?;
            if command == MSG_STAT {
                queue.permission().check(&credentials, READ)?;
            }
            mm.write(buffer, &queue.encode())?;
            Ok(id)
        }
        IPC_SET => {
            let mut bytes = [0; 120];
            mm.read(buffer, &mut bytes)?;
            QUEUES.find(id)?.set(&credentials, &bytes)?;
            Ok(0)
        }
        IPC_RMID => {
            QUEUES.remove(id, |queue| queue.permission().check_owner(&credentials))?;
            Ok(0)
        }
        _ => Err(EINVAL.because("unknown msgctl command")),
    }
}

//! brk.

use super::{Arguments, Context};
use crate::Result;

/// brk(2): never fails; the answer is where the break is.
pub fn brk(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    Ok(context.mm().brk(arguments.u64(0)) as usize)
}

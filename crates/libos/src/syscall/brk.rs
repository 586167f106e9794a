//! brk.

use super::{Arguments, Context, memory_limits};
use crate::Result;

/// brk(2): never fails; the answer is where the break is.
pub fn brk(context: &mut Context<'_>, arguments: Arguments) -> Result<usize> {
    let mm = context.mm();
    let (wanted, end) = (arguments.u64(0), mm.heap().end);
    if wanted > end && memory_limits::check_growth(context, wanted - end, true, None).is_err() {
        return Ok(end as usize);
    }
    Ok(mm.brk(wanted) as usize)
}

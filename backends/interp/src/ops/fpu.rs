//! x87.

use crate::decode::Lower;
use crate::op::Handler;

pub(super) fn lower(_l: &mut Lower<'_>) -> Option<Handler> {
    None
}

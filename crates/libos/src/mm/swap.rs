//! Moving pages between live and saved.
//!
//! Everything works on runs, in place where the pages can be read and written: a switch between
//! two processes of some megabytes costs a comparison of what both have, and a copy of what
//! differs.

use alloc::vec::Vec;
use core::ops::Range;

use super::saved::{Kept, PAGE_LEN, SavedPage, Tag, each_page};
use super::shared::View;
use super::{PAGE, State, Vma, accounting, page_down};
use crate::Result;
use crate::platform::{Protection, platform};

const READ_WRITE: Protection = Protection::READ.union(Protection::WRITE);

/// Shows the live pages of one mapping: address, content and tag.
pub(super) fn read_run(
    range: &Range<u64>,
    protection: Protection,
    look: &mut dyn FnMut(u64, &[u8], Tag),
) {
    let len = range.end - range.start;
    if !protection.contains(Protection::READ) {
        let _ = platform().protect(range.start, len, Protection::READ);
    }
    let _ = platform().fill(range.start, len, &mut |bytes| {
        let mut at = range.start;
        each_page(bytes, &mut |page, tag| {
            look(at, page, tag);
            at += PAGE;
        });
        Ok(())
    });
    if !protection.contains(Protection::READ) {
        let _ = platform().protect(range.start, len, protection);
    }
}

/// Writes within a live page, whatever its protection.
pub(super) fn write_live(address: u64, bytes: &[u8], protection: Protection) {
    let page = page_down(address);
    let writable = protection.contains(Protection::WRITE);
    if !writable {
        let _ = platform().protect(page, PAGE, READ_WRITE);
    }
    let _ = platform().copy_to_user(address, bytes);
    if !writable {
        let _ = platform().protect(page, PAGE, protection);
    }
}

/// What matters of a mapping for a run of its pages.
#[derive(Clone, Copy)]
struct Part {
    end: u64,
    protection: Protection,
    /// The content need not be kept: it is the file's, or nobody's any more.
    disposable: bool,
}

fn part_at(state: &State, page: u64) -> Option<Part> {
    let vma = state.vmas.find(page)?;
    Some(Part {
        end: vma.end,
        protection: vma.page_protection(),
        disposable: vma.is_clean() || state.dead,
    })
}

/// Saves the leaver's live pages of a range and gives the memory back.
pub(super) fn evict(leaver: &mut State, range: &Range<u64>) {
    for alias in leaver.vmas.overlapping(range).filter(|vma| vma.is_alias()) {
        if let Some(view) = alias.clipped(range).view() {
            view.object.return_home(&view);
        }
    }
    let runs: Vec<_> = leaver.live.runs(range.clone()).collect();
    for run in runs {
        let mut at = run.start;
        while at < run.end {
            let Some(part) = part_at(leaver, at) else {
                break;
            };
            let piece = at..run.end.min(part.end);
            at = piece.end;
            if part.disposable {
                accounting::uncharge(piece.end - piece.start);
            } else {
                let saved = &mut leaver.saved;
                read_run(&piece, part.protection, &mut |page, bytes, tag| {
                    saved.insert(page, SavedPage::new(bytes, tag));
                });
            }
        }
        platform().decommit(run.start, run.end - run.start);
        leaver.live.remove(run);
    }
}

/// What the leaver's aliases hold where the comer has something else returns to its home.
pub(super) fn return_aliases(leaver: &State, comer: &State) {
    for alias in leaver.vmas.iter().filter(|vma| vma.is_alias()) {
        let Some(view) = alias.view() else { continue };
        let same = |other: View| view.agrees_with(&other);
        for vma in comer.vmas.overlapping(&alias.range()) {
            if vma.owns_addresses()
                && !vma.view().is_some_and(same)
                && let Some(view) = alias.clipped(&vma.range()).view()
            {
                view.object.return_home(&view);
            }
        }
    }
}

/// Gives the addresses that both hold from the leaver to the comer.
pub(super) fn exchange(leaver: &mut State, comer: &mut State) {
    swap_saved(leaver, comer);
    // What else the leaver has where the comer has mappings: clean text of the same file is handed
    // over, the rest is saved.
    // A leaver that has waited itself has few pages left: its runs are the shorter list.
    let mut overlaps: Vec<(Range<u64>, Vma)> = Vec::new();
    for run in leaver.live.runs(platform().user_range()) {
        let owners = comer
            .vmas
            .overlapping(&run)
            .filter(|vma| vma.owns_addresses());
        overlaps.extend(owners.map(|vma| {
            let part = run.start.max(vma.start)..run.end.min(vma.end);
            (part, vma.clone())
        }));
    }
    for (run, to) in overlaps {
        let mut at = run.start;
        while at < run.end {
            let Some(from) = leaver.vmas.find(at).cloned() else {
                break;
            };
            let piece = at..run.end.min(from.end);
            at = piece.end;
            if from.is_clean() && to.is_clean() && from.same_file(&to) {
                hand_over(
                    leaver,
                    comer,
                    &piece,
                    from.page_protection(),
                    to.page_protection(),
                );
            } else {
                evict(leaver, &piece);
            }
        }
    }
}

/// The leaver's live pages become the comer's.
fn hand_over(
    leaver: &mut State,
    comer: &mut State,
    run: &Range<u64>,
    from: Protection,
    to: Protection,
) {
    leaver.live.remove(run.clone());
    comer.live.insert(run.clone());
    if from != to {
        // Committed pages: only a hostile host makes this fail, and then the next access faults.
        let _ = platform().protect(run.start, run.end - run.start, to);
    }
}

/// Exchanges the pages that the comer has saved and the leaver has live. Usually those are all that
/// the comer has saved, and the leaver has none: then the whole map changes hands, and only the
/// content of pages that differ is touched.
fn swap_saved(leaver: &mut State, comer: &mut State) {
    let all = platform().user_range();
    let mut runs = leaver.live.runs(all);
    if !runs.any(|run| comer.saved.range(run).next().is_some()) {
        return;
    }
    let mut saved = core::mem::take(&mut comer.saved);
    let mut apart: Vec<u64> = Vec::new();
    let mut disposable: Vec<u64> = Vec::new();
    let mut pages = saved.iter_mut().peekable();
    while let Some((&start, first)) = pages.next() {
        let parts = part_at(leaver, start).zip(part_at(comer, start));
        let live_end = |to: &Part, from: &Part| leaver.live.run_end(start, from.end.min(to.end));
        let found = parts.map(|(from, to)| (live_end(&to, &from), from, to));
        let Some((limit, from, to)) = found.filter(|(limit, ..)| *limit > start) else {
            apart.push(start);
            continue;
        };
        let mut run_pages = alloc::vec![first];
        let mut end = start + PAGE;
        while end < limit
            && let Some((_, page)) = pages.next_if(|(next, _)| **next == end)
        {
            run_pages.push(page);
            end += PAGE;
        }
        let run = start..end;
        swap_run(&run, from.protection, &mut run_pages);
        if from.disposable {
            accounting::uncharge(end - start);
            if !leaver.dead {
                disposable.extend(run.clone().step_by(PAGE_LEN));
            }
        }
        hand_over(leaver, comer, &run, from.protection, to.protection);
    }
    for page in apart {
        comer.saved.extend(saved.remove_entry(&page));
    }
    if leaver.dead {
        comer.kept = Kept::new(saved);
        return;
    }
    for page in disposable {
        saved.remove(&page);
    }
    leaver.saved.append(&mut saved);
}

/// Exchanges the content of live pages with saved ones.
fn swap_run(run: &Range<u64>, protection: Protection, pages: &mut [&mut SavedPage]) {
    let len = run.end - run.start;
    if !protection.contains(READ_WRITE) {
        if protection.contains(Protection::READ) && is_run_equal(run, pages) {
            return;
        }
        let _ = platform().protect(run.start, len, READ_WRITE);
    }
    let _ = platform().fill(run.start, len, &mut |bytes| {
        let mut saved = pages.iter_mut();
        each_page(bytes, &mut |live, tag| {
            if let Some(saved) = saved.next() {
                saved.exchange(live, tag);
            }
        });
        Ok(())
    });
    if !protection.contains(READ_WRITE) {
        let _ = platform().protect(run.start, len, protection);
    }
}

/// Whether live pages that can be read hold what is saved: constant data usually does, and then its
/// protection need not change.
fn is_run_equal(run: &Range<u64>, pages: &[&mut SavedPage]) -> bool {
    let mut equal = true;
    let read = platform().fill(run.start, run.end - run.start, &mut |bytes| {
        let mut saved = pages.iter();
        each_page(bytes, &mut |live, tag| {
            equal &= saved.next().is_some_and(|saved| saved.is(live, tag));
        });
        Ok(())
    });
    read.is_ok() && equal
}

/// Brings all saved pages of a space back; its addresses are free.
pub(super) fn restore_all(state: &mut State) {
    let numbers: Vec<u64> = state.saved.keys().copied().collect();
    let mut at = 0;
    while at < numbers.len() {
        let start = numbers[at];
        let Some(vma) = state.vmas.find(start).cloned() else {
            at += 1;
            continue;
        };
        let mut end = start + PAGE;
        at += 1;
        while at < numbers.len() && numbers[at] == end && end < vma.end {
            end += PAGE;
            at += 1;
        }
        // When this fails the pages stay saved, and faults try again.
        let _ = restore(state, &vma, start..end);
    }
}

/// Brings a run of saved pages of one mapping back.
pub(super) fn restore(state: &mut State, vma: &Vma, range: Range<u64>) -> Result<()> {
    let len = range.end - range.start;
    super::commit(&range, READ_WRITE)?;
    let saved = &state.saved;
    platform().fill(range.start, len, &mut |bytes| {
        let pages = saved.range(range.clone()).map(|(_, page)| page);
        for (live, page) in bytes.chunks_exact_mut(PAGE_LEN).zip(pages) {
            live.copy_from_slice(page.bytes());
        }
        Ok(())
    })?;
    if vma.page_protection() != READ_WRITE {
        platform().protect(range.start, len, vma.page_protection())?;
    }
    for page in range.clone().step_by(PAGE_LEN) {
        state.saved.remove(&page);
    }
    state.live.insert(range);
    Ok(())
}

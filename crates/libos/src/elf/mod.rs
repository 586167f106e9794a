//! Loading programs: ELF files and `#!` scripts.
//!
//! - [`parse`]: ELF headers, which may be hostile.
//! - [`load`]: builds a fresh address space with the program, its interpreter, the vDSO and the
//!   initial stack.
//! - [`script`]: `#!` lines.
//! - [`stack`]: arguments, environment and auxiliary vector.
//! - [`vdso`]: our own.

pub mod load;
pub mod parse;
pub mod script;
pub mod stack;
pub mod vdso;

pub use load::{Executable, Loaded, Program, load};

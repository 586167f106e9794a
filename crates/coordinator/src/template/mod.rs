//! Go's text/template language, as far as manifests use it.
//!
//! Files and environment variables of a marble are templates over secrets. All of the language is
//! here (pipelines, variables, `if`, `with`, `range`, `define`, `block`, comparisons, trimming);
//! of the data only what [`Data`] holds can be reached, and of the functions only those that Go
//! builds in and those of [`Functions`].
//!
//! Templates are their author's words, but run inside the coordinator: [`exec`] bounds steps,
//! depth and output.

mod builtin;
mod exec;
mod lex;
mod parse;
mod value;

pub use value::{Data, Reserved};

/// Which functions a template may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Functions {
    /// `pem`, `hex`, `base64`, `raw`
    Files,
    /// `pem`, `hex`, `base64`, `string`
    Environment,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("template: {line}: {reason}")]
    Parse { line: usize, reason: String },
    #[error("template: {0}")]
    Run(String),
    #[error("template: error calling {function}: {reason}")]
    Call { function: String, reason: String },
}

/// Executes a template.
pub fn render(
    text: &[u8],
    functions: Functions,
    data: &Data<'_>,
) -> Result<Vec<u8>, TemplateError> {
    // What has no action needs no parser.
    if !text.windows(2).any(|pair| pair == b"{{") {
        return Ok(text.to_vec());
    }
    let set = parse::parse(text, functions)?;
    exec::execute(&set, data)
}

#[cfg(test)]
mod tests;

//! The language, construct by construct; expectations are what Go prints.

use super::*;
use crate::manifest::SecretSpec;
use crate::secrets::Secret;
use std::collections::BTreeMap;

fn secret(kind: &str, public: &[u8]) -> Secret {
    Secret {
        spec: SecretSpec {
            kind: kind.to_owned(),
            size: 128,
            ..SecretSpec::default()
        },
        cert: if kind.starts_with("cert") {
            b"cert".to_vec()
        } else {
            Vec::new()
        },
        private: b"private".to_vec(),
        public: public.to_vec(),
    }
}

fn run(text: &str, functions: Functions) -> Result<String, String> {
    let secrets = BTreeMap::from([
        ("key".to_owned(), secret("symmetric-key", &[0, 1, 254])),
        ("plain".to_owned(), secret("plain", b"hello")),
        ("nul".to_owned(), secret("plain", b"a\0b")),
        ("empty".to_owned(), secret("plain", b"")),
        ("tls".to_owned(), secret("cert-ecdsa", b"public")),
    ]);
    let previous = BTreeMap::from([("key".to_owned(), secret("symmetric-key", &[9]))]);
    let reserved = Reserved {
        root_ca: secret("cert-ecdsa", b"r"),
        marble_cert: secret("cert-ecdsa", b"m"),
        coordinator_root: secret("cert-ecdsa", b"c"),
        coordinator_intermediate: secret("cert-ecdsa", b"i"),
    };
    let data = Data {
        secrets: &secrets,
        previous: &previous,
        reserved: &reserved,
    };
    render(text.as_bytes(), functions, &data)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|error| error.to_string())
}

fn file(text: &str) -> Result<String, String> {
    run(text, Functions::Files)
}

#[test]
fn secrets_are_encoded() {
    for (text, expected) in [
        ("{{ hex .Secrets.key }}", "0001fe"),
        ("{{ base64 .Secrets.key.Public }}", "AAH+"),
        ("{{ hex .Secrets.key.Private }}", "70726976617465"),
        ("{{ hex .Previous.Secrets.key }}", "09"),
        ("{{ raw .Secrets.plain }}", "hello"),
        (
            "{{ pem .Secrets.tls.Cert }}",
            "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n",
        ),
        (
            "{{ pem .Secrets.tls.Public }}",
            "-----BEGIN PUBLIC KEY-----\ncHVibGlj\n-----END PUBLIC KEY-----\n",
        ),
        (
            "{{ .Secrets.tls.Private | pem }}",
            "-----BEGIN PRIVATE KEY-----\ncHJpdmF0ZQ==\n-----END PRIVATE KEY-----\n",
        ),
        (
            "{{ pem .MarbleRun.RootCA.Cert }}",
            "-----BEGIN CERTIFICATE-----\nY2VydA==\n-----END CERTIFICATE-----\n",
        ),
        (
            "{{ hex .MarbleRun.CoordinatorRoot.Public }}{{ hex .MarbleRun.CoordinatorIntermediate.Public }}",
            "6369",
        ),
    ] {
        assert_eq!(file(text).unwrap(), expected, "{text}");
    }
    assert_eq!(
        run("{{ string .Secrets.plain }}", Functions::Environment).unwrap(),
        "hello"
    );
}

#[test]
fn mistakes_have_the_texts_of_the_interface() {
    for (text, functions, expected) in [
        (
            "{{ hex .Secrets.nothing }}",
            Functions::Files,
            "secret does not exist",
        ),
        (
            "{{ pem .Secrets.nothing }}",
            Functions::Files,
            "secret does not exist",
        ),
        (
            "{{ raw .Secrets.empty }}",
            Functions::Files,
            "tried to parse secret with empty value",
        ),
        (
            "{{ pem .Secrets.key }}",
            Functions::Files,
            "invalid secret type for pem encoding",
        ),
        ("{{ hex 1 }}", Functions::Files, "invalid secret type"),
        (
            "{{ string .Secrets.key }}",
            Functions::Environment,
            "invalid secret type",
        ),
        (
            "{{ string .Secrets.plain.Public }}",
            Functions::Environment,
            "invalid secret type",
        ),
        (
            "{{ string .Secrets.nul }}",
            Functions::Environment,
            "secret contains null bytes",
        ),
        (
            "{{ raw .Secrets.plain }}",
            Functions::Environment,
            "function \"raw\" not defined",
        ),
        (
            "{{ string .Secrets.plain }}",
            Functions::Files,
            "function \"string\" not defined",
        ),
        (
            "{{ .MarbleRun.SealKey }}",
            Functions::Files,
            "can't evaluate field SealKey",
        ),
        ("{{ .Secrets.nothing.Cert }}", Functions::Files, "nil data"),
        (
            "{{ .Other }}",
            Functions::Files,
            "can't evaluate field Other",
        ),
        (
            "{{ .Secrets.key }}",
            Functions::Files,
            "a secret has no text of its own",
        ),
    ] {
        let error = run(text, functions).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn the_language_is_gos() {
    for (text, expected) in [
        ("plain text, } and {", "plain text, } and {"),
        ("a {{- \" b \" -}} c", "a b c"),
        ("{{/* comment */}}x{{- /* trimmed */ -}} y", "xy"),
        (
            "{{ \"a\\tb\\x41\\u00e9\" }}{{ `raw\\n` }}{{ 'a' }}",
            "a\tbA\u{e9}raw\\n97",
        ),
        ("{{ 0x10 }} {{ 010 }} {{ -3 }} {{ 1.5 }}", "16 8 -3 1.5"),
        ("{{ if true }}a{{ else }}b{{ end }}", "a"),
        (
            "{{ if .Secrets.nothing }}a{{ else if eq 1 2 }}b{{ else }}c{{ end }}",
            "c",
        ),
        ("{{ if and true (not false) }}x{{ end }}", "x"),
        ("{{ or \"\" \"b\" }}", "b"),
        (
            "{{ with .Secrets.key }}{{ hex . }}{{ else }}none{{ end }}",
            "0001fe",
        ),
        (
            "{{ with .Secrets.nothing }}x{{ else }}none{{ end }}",
            "none",
        ),
        (
            "{{ with $x := .Secrets.key }}{{ hex $x.Public }}{{ end }}",
            "0001fe",
        ),
        (
            "{{ $x := 1 }}{{ if true }}{{ $x = 2 }}{{ end }}{{ $x }}",
            "2",
        ),
        (
            "{{ $x := 1 }}{{ if true }}{{ $x := 2 }}{{ end }}{{ $x }}",
            "1",
        ),
        (
            "{{ range $n, $s := .Secrets }}{{ $n }} {{ end }}",
            "empty key nul plain tls ",
        ),
        (
            "{{ range .Secrets.key.Public }}[{{ . }}]{{ end }}",
            "[0][1][254]",
        ),
        (
            "{{ range $i, $b := .Secrets.key.Public }}{{ if eq $i 1 }}{{ continue }}{{ end }}{{ $b }};{{ end }}",
            "0;254;",
        ),
        (
            "{{ range $b := .Secrets.key.Public }}{{ if eq $b 1 }}{{ break }}{{ end }}{{ $b }}{{ end }}",
            "0",
        ),
        (
            "{{ range .Secrets.nothing }}x{{ else }}empty{{ end }}",
            "empty",
        ),
        (
            "{{ define \"t\" }}<{{ . }}>{{ end }}{{ template \"t\" \"x\" }}{{ template \"t\" 2 }}",
            "<x><2>",
        ),
        ("{{ block \"b\" \"y\" }}({{ . }}){{ end }}", "(y)"),
        (
            "{{ (index .Secrets \"key\").Size }} {{ len .Secrets.key.Public }}",
            "128 3",
        ),
        ("{{ hex (index .Secrets \"key\") }}", "0001fe"),
        ("{{ printf \"%s-%03d-%x\" \"a\" 7 \"hi\" }}", "a-007-6869"),
        ("{{ print 1 2 \"a\" 3 }}", "1 2a3"),
        (
            "{{ slice \"hello\" 1 3 }}{{ html \"<a>\" }}{{ urlquery \"a b&\" }}",
            "el&lt;a&gt;a+b%26",
        ),
        (
            "{{ eq 1 2 3 1 }} {{ ne \"a\" \"b\" }} {{ lt 1 2 }} {{ ge 2 2 }}",
            "true true true true",
        ),
        ("{{ .Secrets.nothing }}", "<no value>"),
        ("{{ \"x\" | printf \"%s%s\" \"y\" }}", "yx"),
        ("{{ $.Secrets.key.Type }}", "symmetric-key"),
        (
            "{{- range $i, $e := .Secrets.key.Public }}{{ $.Secrets.key.Size }},{{ end -}}  ",
            "128,128,128,",
        ),
    ] {
        assert_eq!(file(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn hostile_templates_end_with_an_error() {
    for text in [
        "{{",
        "{{ }}",
        "{{ if }}x{{ end }}",
        "{{ if true }}",
        "{{ end }}",
        "{{ else }}",
        "{{ \"a }}",
        "{{ `a }}",
        "{{ (1 }}",
        "{{ 1) }}",
        "{{ . | 1 }}",
        "{{ $x }}",
        "{{ $x = 1 }}",
        "{{ nil }}",
        "{{ call .Secrets }}",
        "{{ template \"none\" }}",
        "{{ break }}",
        "{{ /* x }}",
        "{{ /* x */ y }}",
        "{{ 1 2 }}",
        "{{ .Secrets 1 }}",
        "{{ index .Secrets.key.Public 3 }}",
        "{{ index .Secrets.key.Public -1 }}",
        "{{ slice \"ab\" 2 1 }}",
        "{{ printf \"%d\" }}",
        "{{ eq 1 \"a\" }}",
        "{{ \"\\x4\" }}",
        "{{ 1x }}",
        "{{ os }}",
        "{{ .a.b.c }}",
        "{{ define \"t\" }}{{ template \"t\" . }}{{ end }}{{ template \"t\" . }}",
        "{{ range 1000000 }}{{ range 1000000 }}x{{ end }}{{ end }}",
        "{{ define \"a\" }}x",
    ] {
        assert!(file(text).is_err(), "{text}: {:?}", file(text));
    }
    let deep = "{{ if true }}".repeat(5000) + &"{{ end }}".repeat(5000);
    assert!(file(&deep).is_err());
    let parens = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    assert!(file(&parens).is_err());
    let bytes: Vec<u8> = (0..=255).collect();
    let _ = file(&format!("{{{{ {} }}}}", String::from_utf8_lossy(&bytes)));
}

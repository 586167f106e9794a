//! ECREATE, EADD, EEXTEND and EINIT.

use bulla_loader::backend::emulated::Profile;
use bulla_loader::backend::{Backend, Error};
use bulla_sgx::{SecInfo, Secs, SigStruct, Tcs, flags};

use crate::enclave::{DATA, Options, PAGE, SIGNER_A, SIZE, TestEnclave, description, secs, signed};

fn full() -> Profile {
    Profile::named("full").unwrap()
}

/// The reason why ECREATE refuses a changed SECS.
fn refusal(profile: Profile, change: impl Fn(&mut Secs)) -> String {
    let options = Options::new(profile);
    let mut secs = secs(&options);
    change(&mut secs);
    let platform =
        bulla_loader::backend::emulated::Emulated::new(profile, &options.directory).unwrap();
    platform.create(&secs.to_bytes()).unwrap_err().to_string()
}

#[test]
fn ecreate_refuses_what_the_cpu_refuses() {
    type Change = fn(&mut Secs);
    let cases: [(&str, Change); 14] = [
        ("power of two", |secs| secs.size += PAGE),
        ("power of two", |secs| secs.size = PAGE),
        ("larger than", |secs| secs.size = 1 << 57),
        ("multiple of SIZE", |secs| secs.base_addr += PAGE),
        ("INIT", |secs| secs.attributes.flags |= flags::INIT),
        ("ATTRIBUTES has bits", |secs| {
            secs.attributes.flags |= 1 << 3
        }),
        ("MODE64BIT", |secs| {
            secs.attributes.flags &= !flags::MODE64BIT
        }),
        ("XFRM", |secs| secs.attributes.xfrm = 1),
        ("XFRM", |secs| secs.attributes.xfrm = 3 | 1 << 5),
        ("XFRM", |secs| secs.attributes.xfrm = 3 | 0xe0),
        ("XFRM", |secs| secs.attributes.xfrm = 7 | 1 << 9),
        ("MISCSELECT", |secs| secs.misc_select |= 2),
        ("SSAFRAMESIZE", |secs| secs.ssa_frame_size = 0),
        ("CET", |secs| secs.cet_attributes = 1),
    ];
    for profile in Profile::NAMED {
        for (reason, change) in cases {
            let text = refusal(profile, change);
            assert!(text.contains(reason), "{}: {text}", profile.name);
        }
    }
    let dcsv2 = Profile::named("dcsv2").unwrap();
    assert!(refusal(dcsv2, |secs| secs.attributes.flags |= flags::KSS).contains("ATTRIBUTES"));
    assert!(refusal(dcsv2, |secs| secs.attributes.xfrm = 0xe7).contains("XFRM"));
    assert!(refusal(dcsv2, |secs| secs.misc_select = 1).contains("MISCSELECT"));
    assert!(refusal(dcsv2, |secs| secs.size = 1 << 40).contains("static layout"));
    assert!(refusal(dcsv2, |secs| secs.config_id[3] = 1).contains("CONFIGID"));
}

#[test]
fn a_range_that_is_taken_is_refused() {
    let options = Options::new(full());
    let _first = TestEnclave::created(&options).unwrap();
    let second =
        bulla_loader::backend::emulated::Emulated::new(full(), &options.directory).unwrap();
    let error = second.create(&secs(&options).to_bytes()).unwrap_err();
    assert!(
        matches!(error, Error::System { call: "mmap", .. }),
        "{error}"
    );
}

#[test]
fn eadd_refuses_misaligned_overlapping_and_outside() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::created(&Options::new(profile)).unwrap();
        let add = |address: u64, len: usize, flags: u64| {
            let address = enclave.base.wrapping_add(address);
            enclave
                .platform
                .add_pages(address, &vec![0; len], flags, true)
        };
        let (reg, rw) = (SecInfo::regular(3).0, 3);
        add(DATA, 8192, reg).unwrap();
        let bad = [
            (DATA, 4096, reg, "overlaps"),
            (DATA - PAGE, 8192, reg, "overlaps"),
            (DATA + 8, 4096, reg, "whole pages"),
            (DATA + 8 * PAGE, 100, reg, "whole pages"),
            (SIZE, 4096, reg, "whole pages"),
            (SIZE - PAGE, 8192, reg, "whole pages"),
            (0u64.wrapping_sub(2 * SIZE), 4096, reg, "whole pages"),
            (DATA + 8 * PAGE, 4096, rw, "SECINFO"), // page type 0, SECS
            (DATA + 8 * PAGE, 4096, SecInfo::regular(2).0, "SECINFO"), // W without R
            (DATA + 8 * PAGE, 4096, reg | SecInfo::PENDING, "SECINFO"),
            (DATA + 8 * PAGE, 4096, 4 << 8, "SECINFO"), // PT_TRIM
            (DATA + 8 * PAGE, 4096, SecInfo::tcs().0 | 3, "SECINFO"),
        ];
        for (address, len, flags, reason) in bad {
            let error = add(address, len, flags).unwrap_err().to_string();
            assert!(error.contains(reason), "{address:#x}: {error}");
        }
    }
}

#[test]
fn eadd_checks_a_tcs() {
    let enclave = TestEnclave::created(&Options::new(full())).unwrap();
    let good = TestEnclave::tcs_page(0, 3);
    let add = |tcs: &Tcs| {
        let bytes = tcs.to_bytes();
        enclave
            .platform
            .add_pages(enclave.base + DATA, &bytes, SecInfo::tcs().0, true)
    };
    let bad = [
        (Tcs { flags: 4, ..good }, "flags"),
        (Tcs { flags: 2, ..good }, "AEXNOTIFY"),
        (Tcs { ossa: 8, ..good }, "OSSA"),
        (
            Tcs {
                ofs_base: 8,
                ..good
            },
            "OFSBASGX",
        ),
        (
            Tcs {
                ogs_base: 0x801,
                ..good
            },
            "OFSBASGX",
        ),
        (
            Tcs {
                oentry: 1 << 48,
                ..good
            },
            "too large",
        ),
    ];
    for (tcs, reason) in bad {
        let error = add(&tcs).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    let mut reserved = good.to_bytes();
    reserved[100] = 1;
    let address = enclave.base + DATA;
    let added = enclave
        .platform
        .add_pages(address, &reserved, SecInfo::tcs().0, true);
    assert!(added.unwrap_err().to_string().contains("reserved"));
    add(&good).unwrap();
}

/// EINIT's error code.
fn code(result: Result<(), Error>) -> u64 {
    match result {
        Err(Error::Sgx {
            leaf: "EINIT",
            code,
            ..
        }) => code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn einit_checks_everything_with_the_right_code() {
    for profile in Profile::NAMED {
        let options = Options::new(profile);
        let enclave = TestEnclave::built(&options);
        let mrenclave = enclave.measurement.clone().finish();
        let good = signed(&options, mrenclave);
        let try_bytes = |bytes: &[u8; 1808]| code(enclave.platform.init(bytes));
        let change = |at: usize| {
            let mut bytes = good.to_bytes();
            bytes[at] ^= 1;
            bytes
        };
        // 1 SGX_INVALID_SIG_STRUCT: headers, reserved fields, vendor, exponent.
        for at in [0, 15, 24, 50, 910, 992, 1030, 16, 512] {
            assert_eq!(try_bytes(&change(at)), 1, "byte {at}");
        }
        // 8 SGX_INVALID_SIGNATURE: the key, the signature, q1, q2, and all that is signed.
        for at in [200, 600, 1100, 1500, 20, 40, 900, 928, 960, 1024, 1026] {
            assert_eq!(try_bytes(&change(at)), 8, "byte {at}");
        }
        // 4 SGX_INVALID_MEASUREMENT: signed for something else.
        let mut other = mrenclave;
        other[0] ^= 1;
        assert_eq!(
            code(enclave.platform.init(&signed(&options, other).to_bytes())),
            4
        );
        // 2 SGX_INVALID_ATTRIBUTE: attributes, XFRM and MISCSELECT outside the masks.
        let sign = |change: &dyn Fn(&mut bulla_image::Description)| {
            let mut description = description(&options, mrenclave);
            change(&mut description);
            let key = bulla_image::SigningKey::from_pem(SIGNER_A).unwrap();
            description.sign(&key).unwrap().to_bytes()
        };
        let init = |bytes: [u8; 1808]| code(enclave.platform.init(&bytes));
        assert_eq!(init(sign(&|it| it.attributes.flags |= flags::DEBUG)), 2);
        assert_eq!(init(sign(&|it| it.attributes.xfrm = 3)), 2);
        assert_eq!(init(sign(&|it| it.misc_select ^= 1)), 2);
        // Nothing else may run before EINIT.
        enclave.platform.prepare_thread().unwrap();
        let outcome = enclave.run(0, crate::code::at::do_nothing(), [0; 4]).0;
        let vector = 13;
        assert!(
            matches!(outcome, bulla_loader::backend::Outcome::Exception { leaf: 2, vector: v, .. }
                if v == vector)
        );
        // A masked difference is none.
        let masked = sign(&|it| {
            it.attributes.flags |= flags::DEBUG;
            it.attribute_mask.flags &= !flags::DEBUG;
        });
        enclave.platform.init(&masked).unwrap();
        assert_eq!(enclave.platform.mrenclave(), mrenclave);
        // And only once; no EADD afterwards.
        assert!(enclave.platform.init(&good.to_bytes()).is_err());
        let late = enclave
            .platform
            .add_pages(enclave.fresh(), &[0; 4096], 0x203, true);
        assert!(late.unwrap_err().to_string().contains("after EINIT"));
    }
}

#[test]
fn keys_for_few_are_refused() {
    for flag in [flags::PROVISION_KEY, flags::EINITTOKEN_KEY] {
        let mut options = Options::new(full());
        options.attributes |= flag;
        let enclave = TestEnclave::built(&options);
        let sigstruct = signed(&options, enclave.measurement.clone().finish());
        assert_eq!(code(enclave.platform.init(&sigstruct.to_bytes())), 2);
        drop(enclave);
        options.profile = options.profile.privileged();
        TestEnclave::with(options);
    }
}

#[test]
fn family_and_product_ids_need_kss() {
    let options = Options::new(Profile::named("dcsv2").unwrap());
    let enclave = TestEnclave::built(&options);
    let mut sigstruct = SigStruct {
        isv_family_id: [1; 16],
        ..signed(&options, enclave.measurement.clone().finish())
    };
    let unsigned = code(enclave.platform.init(&sigstruct.to_bytes()));
    assert_eq!(unsigned, 8);
    sigstruct.isv_family_id = [0; 16];
    enclave.platform.init(&sigstruct.to_bytes()).unwrap();
}

#[test]
fn measurement_does_not_depend_on_how_pages_are_added() {
    let options = Options::new(full());
    let build = |zero: bool, measure: bool| {
        let enclave = TestEnclave::created(&options).unwrap();
        let address = enclave.base + DATA;
        if zero {
            enclave
                .platform
                .add_zero_pages(address, 64 << 12, 0x203, measure)
                .unwrap();
        } else {
            enclave
                .platform
                .add_pages(address, &vec![0; 64 << 12], 0x203, measure)
                .unwrap();
        }
        let mut expected = enclave.measurement.clone();
        for page in 0..64 {
            let offset = DATA + page * PAGE;
            if measure {
                expected.page(offset, SecInfo(0x203), &[0; 4096]);
            } else {
                expected.eadd(offset, SecInfo(0x203));
            }
        }
        let expected = expected.finish();
        enclave
            .platform
            .init(&signed(&options, expected).to_bytes())
            .unwrap();
        enclave.platform.mrenclave()
    };
    assert_eq!(build(false, true), build(true, true));
    assert_eq!(build(false, false), build(true, false));
    assert_ne!(build(true, true), build(true, false));
}

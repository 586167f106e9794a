//! EREPORT and EGETKEY.

use std::collections::HashSet;

use bulla_loader::backend::emulated::{Fuses, Profile, verify_report};
use bulla_sgx::{Attributes, KeyName, KeyRequest, Report, SecInfo, TargetInfo, flags, key_policy};

use crate::code::at;
use crate::enclave::{Options, SIGNER_B, TestEnclave, fuses};

const EREPORT: u64 = 0;
const EGETKEY: u64 = 1;
const ZF: u64 = 1 << 6;

impl TestEnclave {
    /// Writes bytes into the enclave's data page.
    fn put(&self, offset: u64, bytes: &[u8]) -> u64 {
        let address = self.data() + offset;
        for (index, word) in bytes.chunks_exact(8).enumerate() {
            let word = u64::from_le_bytes(word.try_into().unwrap());
            self.poke(address + 8 * index as u64, word);
        }
        address
    }

    fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut out = [0; N];
        for (index, word) in out.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&self.peek(address + 8 * index as u64).to_le_bytes());
        }
        out
    }

    fn report(&self, target: &TargetInfo, data: &[u8; 64]) -> Report {
        let rbx = self.put(0x600, &target.to_bytes());
        let rcx = self.put(0x880, data);
        let rdx = self.data() + 0xa00;
        let (rax, _) = self.enclu(EREPORT, rbx, rcx, rdx);
        assert_eq!(rax, EREPORT);
        Report::from_bytes(&self.get(rdx))
    }

    fn own_target(&self) -> TargetInfo {
        TargetInfo::of(&self.report(&anybody(), &[0; 64]))
    }

    /// The key, or EGETKEY's error code.
    fn key(&self, request: &KeyRequest) -> Result<[u8; 16], u64> {
        let rbx = self.put(0x600, &request.to_bytes());
        let rcx = self.data() + 0x800;
        self.poke(rcx, 0);
        self.poke(rcx + 8, 0);
        let (rax, flags) = self.enclu(EGETKEY, rbx, rcx, 0);
        assert_eq!(flags & ZF != 0, rax != 0);
        let key = self.get(rcx);
        if rax == 0 {
            Ok(key)
        } else {
            assert_eq!(key, [0; 16]);
            Err(rax)
        }
    }
}

fn anybody() -> TargetInfo {
    TargetInfo {
        mrenclave: [0; 32],
        attributes: Attributes { flags: 0, xfrm: 0 },
        cet_attributes: 0,
        config_svn: 0,
        misc_select: 0,
        config_id: [0; 64],
    }
}

fn seal(policy: u16) -> KeyRequest {
    KeyRequest {
        key_name: KeyName::Seal as u16,
        key_policy: policy,
        isv_svn: 1,
        attribute_mask: Attributes {
            flags: !0,
            xfrm: !0,
        },
        misc_mask: !0,
        ..KeyRequest::default()
    }
}

#[test]
fn a_report_describes_the_enclave_and_verifies() {
    for profile in Profile::NAMED {
        let options = Options::new(profile);
        let enclave = TestEnclave::with(options.clone());
        let target = enclave.own_target();
        let report = enclave.report(&target, &[0xab; 64]);
        assert_eq!(report.mrenclave, enclave.measurement.clone().finish());
        assert_eq!(report.attributes.flags, options.attributes | flags::INIT);
        assert_eq!((report.isv_prod_id, report.isv_svn), (7, 2));
        assert_eq!(report.report_data, [0xab; 64]);
        assert_eq!(report.misc_select, u32::from(profile.features.exinfo));
        // The enclave's own report key has made the MAC.
        let request = KeyRequest {
            key_name: KeyName::Report as u16,
            key_id: report.key_id,
            ..KeyRequest::default()
        };
        let key = enclave.key(&request).unwrap();
        let fuses = Fuses::open(&options.directory).unwrap();
        assert_eq!(key, fuses.report_key(&target, &report.key_id));
        assert!(verify_report(&fuses, &target, &report));
        // Not for another target, nor after a change.
        assert!(!verify_report(&fuses, &anybody(), &report));
        let forged = Report {
            isv_svn: 3,
            ..report
        };
        assert!(!verify_report(&fuses, &target, &forged));
    }
}

#[test]
fn ereport_checks_its_operands() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let data = enclave.data();
        let (target, input, output) = (data + 0x600, data + 0x880, data + 0xa00);
        enclave.put(0x600, &anybody().to_bytes());
        for (rbx, rcx, rdx) in [
            (target + 256, input, output),
            (target, input + 64, output),
            (target, input, output + 128),
            (0x1000, input, output),
            (target, 0x1000, output),
            (target, input, enclave.base - 0x1000),
        ] {
            assert_eq!(enclave.enclu_fault(EREPORT, rbx, rcx, rdx).0, 13);
        }
        // Where it cannot be written: #PF.
        let readonly = data + 2 * 4096;
        assert_eq!(
            enclave.enclu_fault(EREPORT, target, input, readonly),
            (14, readonly)
        );
        // Reserved fields of TARGETINFO.
        enclave.poke(target + 200, 1);
        assert_eq!(enclave.enclu_fault(EREPORT, target, input, output).0, 13);
    }
}

#[test]
fn seal_keys_depend_on_identity_and_request() {
    for profile in Profile::NAMED {
        let options = Options::new(profile);
        let by_enclave = seal(key_policy::MRENCLAVE);
        let by_signer = seal(key_policy::MRSIGNER);
        let (first, same, signer) = {
            let enclave = TestEnclave::with(options.clone());
            let key = enclave.key(&by_enclave).unwrap();
            (
                key,
                enclave.key(&by_enclave).unwrap(),
                enclave.key(&by_signer).unwrap(),
            )
        };
        assert_eq!(first, same);
        let mut seen = HashSet::from([first, signer]);
        assert_eq!(seen.len(), 2);
        // The same enclave again gives the same keys.
        let enclave = TestEnclave::with(options.clone());
        assert_eq!(enclave.key(&by_enclave), Ok(first));
        // Every part of the request counts.
        let variants = [
            seal(0),
            seal(key_policy::MRENCLAVE | key_policy::MRSIGNER),
            KeyRequest {
                key_id: [1; 32],
                ..by_enclave.clone()
            },
            KeyRequest {
                isv_svn: 0,
                ..by_enclave.clone()
            },
            KeyRequest {
                isv_svn: 2,
                ..by_enclave.clone()
            },
            KeyRequest {
                cpu_svn: [1; 16].map(|_| 0),
                key_id: [2; 32],
                ..by_enclave.clone()
            },
            KeyRequest {
                attribute_mask: Attributes { flags: 3, xfrm: 0 },
                ..by_enclave.clone()
            },
        ];
        for request in &variants {
            assert!(seen.insert(enclave.key(request).unwrap()), "{request:?}");
        }
        drop(enclave);
        // Another MRENCLAVE by the same signer.
        let other = TestEnclave::with(Options {
            data: 1,
            ..options.clone()
        });
        assert!(seen.insert(other.key(&by_enclave).unwrap()));
        assert_eq!(other.key(&by_signer), Ok(signer));
        drop(other);
        // The same enclave by another signer, with another product id, with DEBUG.
        let other = TestEnclave::with(Options {
            key: SIGNER_B,
            ..options.clone()
        });
        assert!(seen.insert(other.key(&by_signer).unwrap()));
        assert_eq!(other.key(&by_enclave), Ok(first));
        drop(other);
        let other = TestEnclave::with(Options {
            isv_prod_id: 8,
            ..options.clone()
        });
        assert!(seen.insert(other.key(&by_signer).unwrap()));
        drop(other);
        let debug = options.attributes | flags::DEBUG;
        let other = TestEnclave::with(Options {
            attributes: debug,
            ..options.clone()
        });
        assert!(seen.insert(other.key(&by_signer).unwrap()));
        // DEBUG cannot be masked out.
        let masked = KeyRequest {
            attribute_mask: Attributes { flags: 0, xfrm: 0 },
            ..by_signer.clone()
        };
        let with_debug = other.key(&masked).unwrap();
        drop(other);
        let enclave = TestEnclave::with(options.clone());
        assert_ne!(enclave.key(&masked).unwrap(), with_debug);
        drop(enclave);
        // Another machine.
        let directory = fuses("another-machine");
        let other = TestEnclave::with(Options {
            directory,
            ..options
        });
        assert!(seen.insert(other.key(&by_enclave).unwrap()));
    }
}

#[test]
fn egetkey_answers_with_the_right_codes() {
    for profile in Profile::NAMED {
        let enclave = TestEnclave::new(profile);
        let good = seal(key_policy::MRENCLAVE);
        let name = |name: u16| KeyRequest {
            key_name: name,
            ..good.clone()
        };
        assert_eq!(enclave.key(&name(5)), Err(256));
        assert_eq!(
            enclave.key(&name(0)),
            Err(2),
            "launch key without the attribute"
        );
        assert_eq!(
            enclave.key(&name(1)),
            Err(2),
            "provisioning key without the attribute"
        );
        assert_eq!(enclave.key(&name(2)), Err(2));
        assert_eq!(
            enclave.key(&KeyRequest {
                isv_svn: 3,
                ..good.clone()
            }),
            Err(64)
        );
        assert_eq!(
            enclave.key(&KeyRequest {
                cpu_svn: [9; 16],
                ..good.clone()
            }),
            Err(32)
        );
        let (request, output) = (enclave.data() + 0x600, enclave.data() + 0x800);
        enclave.put(0x600, &good.to_bytes());
        for (rbx, rcx) in [
            (request + 8, output),
            (request, output + 8),
            (0x1000, output),
        ] {
            assert_eq!(enclave.enclu_fault(EGETKEY, rbx, rcx, 0).0, 13);
        }
        let readonly = enclave.data() + 2 * 4096;
        assert_eq!(
            enclave.enclu_fault(EGETKEY, request, readonly, 0),
            (14, readonly)
        );
        // Reserved fields and policies: #GP.
        enclave.poke(request + 80, 1);
        assert_eq!(enclave.enclu_fault(EGETKEY, request, output, 0).0, 13);
        let kss_policy = seal(key_policy::CONFIG_ID | key_policy::MRSIGNER);
        if profile.features.kss {
            enclave.key(&kss_policy).unwrap();
        } else {
            enclave.put(0x600, &kss_policy.to_bytes());
            assert_eq!(enclave.enclu_fault(EGETKEY, request, output, 0).0, 13);
        }
    }
}

#[test]
fn config_id_separates_keys_where_asked() {
    for profile in Profile::NAMED
        .into_iter()
        .filter(|profile| profile.features.kss)
    {
        let key = |config_id, policy| {
            let options = Options {
                config_id,
                ..Options::new(profile)
            };
            TestEnclave::with(options).key(&seal(policy)).unwrap()
        };
        let with = key_policy::MRSIGNER | key_policy::CONFIG_ID;
        assert_ne!(key([1; 64], with), key([2; 64], with));
        assert_eq!(
            key([1; 64], key_policy::MRSIGNER),
            key([2; 64], key_policy::MRSIGNER)
        );
    }
}

#[test]
fn launch_and_provisioning_keys_go_to_their_enclaves() {
    let profile = Profile::named("full").unwrap().privileged();
    let mut options = Options::new(profile);
    options.attributes |= flags::PROVISION_KEY | flags::EINITTOKEN_KEY;
    let enclave = TestEnclave::with(options);
    let mut seen = HashSet::new();
    for name in [
        KeyName::Einittoken,
        KeyName::Provision,
        KeyName::ProvisionSeal,
        KeyName::Seal,
        KeyName::Report,
    ] {
        let request = KeyRequest {
            key_name: name as u16,
            ..seal(key_policy::MRSIGNER)
        };
        assert!(seen.insert(enclave.key(&request).unwrap()));
    }
}

#[test]
fn fuses_are_made_once_and_private() {
    use std::os::unix::fs::PermissionsExt;
    let directory = fuses("made-once");
    let _ = std::fs::remove_dir_all(&directory);
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let directory = directory.clone();
            std::thread::spawn(move || {
                Fuses::open(&directory)
                    .unwrap()
                    .report_key(&anybody(), &[0; 32])
            })
        })
        .collect();
    let keys: HashSet<_> = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .collect();
    assert_eq!(keys.len(), 1);
    let files: Vec<_> = std::fs::read_dir(&directory)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(files.len(), 1);
    assert_eq!(
        files[0].metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn report_works_at_a_patched_site_too() {
    let enclave = TestEnclave::new(Profile::named("full").unwrap());
    let target = enclave.own_target();
    let info = enclave.secinfo(2 << 8 | 3 | SecInfo::PENDING);
    let page = enclave.fresh();
    for _ in 0..2 {
        // Patches the site and goes through the gate once: no such page, then a mismatch.
        bulla_loader::backend::Backend::commit(&enclave.platform, page, 4096, 3).unwrap();
        enclave.call(at::do_enclu_patched(), [5, info, page, 0]);
    }
    let rbx = enclave.put(0x600, &target.to_bytes());
    let (rcx, rdx) = (enclave.put(0x880, &[7; 64]), enclave.data() + 0xa00);
    let (rax, _) = enclave.call(at::do_enclu_patched(), [EREPORT, rbx, rcx, rdx]);
    assert_eq!(rax, EREPORT);
    let report = Report::from_bytes(&enclave.get(rdx));
    assert_eq!(report.report_data, [7; 64]);
    let fuses = Fuses::open(&fuses("common")).unwrap();
    assert!(verify_report(&fuses, &target, &report));
}

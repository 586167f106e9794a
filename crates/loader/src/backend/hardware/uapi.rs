//! The kernel's SGX interface: structures and request numbers of /dev/sgx_enclave.
//!
//! As in the kernel's `arch/x86/include/uapi/asm/sgx.h`; a test compares them with that header.
//! SGX_IOC_ENCLAVE_PROVISION is left out on purpose: no enclave of ours gets the provisioning key.

/// Direction, size, type 0xA4 and number of an ioctl (asm-generic/ioctl.h).
const fn request(direction: u64, number: u64, size: usize) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xa4 << 8 | number
}

const WRITE: u64 = 1;
const READ_WRITE: u64 = 3;

/// `sgx_enclave_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Create {
    pub src: u64,
}

/// `sgx_enclave_add_pages`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct AddPages {
    pub src: u64,
    pub offset: u64,
    pub length: u64,
    pub secinfo: u64,
    pub flags: u64,
    pub count: u64,
}

/// `sgx_enclave_init`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Init {
    pub sigstruct: u64,
}

/// `sgx_enclave_restrict_permissions`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RestrictPermissions {
    pub offset: u64,
    pub length: u64,
    pub permissions: u64,
    pub result: u64,
    pub count: u64,
}

/// `sgx_enclave_modify_types`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ModifyTypes {
    pub offset: u64,
    pub length: u64,
    pub page_type: u64,
    pub result: u64,
    pub count: u64,
}

/// `sgx_enclave_remove_pages`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct RemovePages {
    pub offset: u64,
    pub length: u64,
    pub count: u64,
}

/// `sgx_enclave_run`: what `__vdso_sgx_enter_enclave` is given and reports.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub tcs: u64,
    pub function: u32,
    pub exception_vector: u16,
    pub exception_error_code: u16,
    pub exception_addr: u64,
    pub user_handler: u64,
    pub user_data: u64,
    pub reserved: [u8; 216],
}

impl Run {
    pub const fn new(tcs: u64) -> Run {
        Run {
            tcs,
            function: 0,
            exception_vector: 0,
            exception_error_code: 0,
            exception_addr: 0,
            user_handler: 0,
            user_data: 0,
            reserved: [0; 216],
        }
    }
}

/// SGX_PAGE_MEASURE.
pub const PAGE_MEASURE: u64 = 1;

pub const CREATE: u64 = request(WRITE, 0, size_of::<Create>());
pub const ADD_PAGES: u64 = request(READ_WRITE, 1, size_of::<AddPages>());
pub const INIT: u64 = request(WRITE, 2, size_of::<Init>());
pub const RESTRICT_PERMISSIONS: u64 = request(READ_WRITE, 5, size_of::<RestrictPermissions>());
pub const MODIFY_TYPES: u64 = request(READ_WRITE, 6, size_of::<ModifyTypes>());
pub const REMOVE_PAGES: u64 = request(READ_WRITE, 7, size_of::<RemovePages>());

/// A request to the driver with its argument.
#[derive(Debug)]
pub enum Request<'a> {
    Create(&'a mut Create),
    AddPages(&'a mut AddPages),
    Init(&'a mut Init),
    RestrictPermissions(&'a mut RestrictPermissions),
    ModifyTypes(&'a mut ModifyTypes),
    RemovePages(&'a mut RemovePages),
}

impl Request<'_> {
    /// Its number.
    pub fn number(&self) -> u64 {
        match self {
            Request::Create(_) => CREATE,
            Request::AddPages(_) => ADD_PAGES,
            Request::Init(_) => INIT,
            Request::RestrictPermissions(_) => RESTRICT_PERMISSIONS,
            Request::ModifyTypes(_) => MODIFY_TYPES,
            Request::RemovePages(_) => REMOVE_PAGES,
        }
    }

    /// Where its argument is.
    pub fn argument(&mut self) -> usize {
        match self {
            Request::Create(argument) => &raw mut **argument as usize,
            Request::AddPages(argument) => &raw mut **argument as usize,
            Request::Init(argument) => &raw mut **argument as usize,
            Request::RestrictPermissions(argument) => &raw mut **argument as usize,
            Request::ModifyTypes(argument) => &raw mut **argument as usize,
            Request::RemovePages(argument) => &raw mut **argument as usize,
        }
    }

    /// The driver's name for it.
    pub fn name(&self) -> &'static str {
        match self {
            Request::Create(_) => "SGX_IOC_ENCLAVE_CREATE",
            Request::AddPages(_) => "SGX_IOC_ENCLAVE_ADD_PAGES",
            Request::Init(_) => "SGX_IOC_ENCLAVE_INIT",
            Request::RestrictPermissions(_) => "SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS",
            Request::ModifyTypes(_) => "SGX_IOC_ENCLAVE_MODIFY_TYPES",
            Request::RemovePages(_) => "SGX_IOC_ENCLAVE_REMOVE_PAGES",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;
    use std::mem::offset_of;

    use super::*;

    /// Prints what the kernel's own header says, by way of the C compiler.
    fn header_says(expressions: &[String]) -> Option<Vec<u64>> {
        let directory = std::env::temp_dir().join(format!("bulla-uapi-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (source, program) = (directory.join("uapi.c"), directory.join("uapi"));
        let mut text = String::from(
            "#include <stdio.h>\n#include <stddef.h>\n#include <sys/ioctl.h>\n\
             #include <asm/sgx.h>\nint main(void) {\n",
        );
        for expression in expressions {
            writeln!(text, "printf(\"%lu\\n\", (unsigned long)({expression}));").unwrap();
        }
        text.push_str("return 0; }\n");
        std::fs::write(&source, text).unwrap();
        let built = std::process::Command::new("cc")
            .arg(&source)
            .arg("-o")
            .arg(&program)
            .status();
        let output = match built {
            Ok(status) if status.success() => {
                let output = std::process::Command::new(&program).output().unwrap();
                Some(String::from_utf8(output.stdout).unwrap())
            }
            _ => None,
        };
        std::fs::remove_dir_all(&directory).unwrap();
        Some(output?.lines().map(|line| line.parse().unwrap()).collect())
    }

    #[test]
    fn the_header_agrees() {
        let mut expected: Vec<(String, u64)> = Vec::new();
        macro_rules! structure {
            ($c:literal, $ty:ident { $($field:ident),* }) => {{
                expected.push((
                    format!("sizeof(struct {})", $c),
                    size_of::<$ty>() as u64,
                ));
                $(expected.push((
                    format!("offsetof(struct {}, {})", $c, stringify!($field)),
                    offset_of!($ty, $field) as u64,
                ));)*
            }};
        }
        structure!("sgx_enclave_create", Create { src });
        structure!(
            "sgx_enclave_add_pages",
            AddPages {
                src,
                offset,
                length,
                secinfo,
                flags,
                count
            }
        );
        structure!("sgx_enclave_init", Init { sigstruct });
        structure!(
            "sgx_enclave_restrict_permissions",
            RestrictPermissions {
                offset,
                length,
                permissions,
                result,
                count
            }
        );
        structure!(
            "sgx_enclave_modify_types",
            ModifyTypes {
                offset,
                length,
                page_type,
                result,
                count
            }
        );
        structure!(
            "sgx_enclave_remove_pages",
            RemovePages {
                offset,
                length,
                count
            }
        );
        structure!(
            "sgx_enclave_run",
            Run {
                tcs,
                function,
                exception_vector,
                exception_error_code,
                exception_addr,
                user_handler,
                user_data,
                reserved
            }
        );
        for (name, value) in [
            ("SGX_IOC_ENCLAVE_CREATE", CREATE),
            ("SGX_IOC_ENCLAVE_ADD_PAGES", ADD_PAGES),
            ("SGX_IOC_ENCLAVE_INIT", INIT),
            ("SGX_IOC_ENCLAVE_RESTRICT_PERMISSIONS", RESTRICT_PERMISSIONS),
            ("SGX_IOC_ENCLAVE_MODIFY_TYPES", MODIFY_TYPES),
            ("SGX_IOC_ENCLAVE_REMOVE_PAGES", REMOVE_PAGES),
            ("SGX_PAGE_MEASURE", PAGE_MEASURE),
        ] {
            expected.push((name.to_string(), value));
        }
        let expressions: Vec<String> = expected.iter().map(|(text, _)| text.clone()).collect();
        let values = header_says(&expressions).expect(
            "a C compiler and the kernel's headers are needed: apt-get install gcc linux-libc-dev",
        );
        assert_eq!(values.len(), expected.len());
        for ((text, ours), theirs) in expected.iter().zip(values) {
            assert_eq!(*ours, theirs, "{text}");
        }
    }
}

//! CPU features that a manifest may demand: their names in /proc/cpuinfo, and where CPUID has them.

/// A bit of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub leaf: u32,
    pub subleaf: u32,
    /// 0 eax, 1 ebx, 2 ecx, 3 edx.
    pub register: usize,
    pub bit: u32,
}

const fn feature(name: &'static str, leaf: u32, register: usize, bit: u32) -> Feature {
    Feature {
        name,
        leaf,
        subleaf: 0,
        register,
        bit,
    }
}

/// Those that programs ask for.
pub const FEATURES: [Feature; 34] = [
    feature("pclmulqdq", 1, 2, 1),
    feature("ssse3", 1, 2, 9),
    feature("fma", 1, 2, 12),
    feature("cx16", 1, 2, 13),
    feature("sse4_1", 1, 2, 19),
    feature("sse4_2", 1, 2, 20),
    feature("movbe", 1, 2, 22),
    feature("popcnt", 1, 2, 23),
    feature("aes", 1, 2, 25),
    feature("avx", 1, 2, 28),
    feature("f16c", 1, 2, 29),
    feature("rdrand", 1, 2, 30),
    feature("bmi1", 7, 1, 3),
    feature("avx2", 7, 1, 5),
    feature("bmi2", 7, 1, 8),
    feature("erms", 7, 1, 9),
    feature("avx512f", 7, 1, 16),
    feature("avx512dq", 7, 1, 17),
    feature("rdseed", 7, 1, 18),
    feature("adx", 7, 1, 19),
    feature("sha_ni", 7, 1, 29),
    feature("avx512bw", 7, 1, 30),
    feature("avx512vl", 7, 1, 31),
    feature("avx512ifma", 7, 1, 21),
    feature("avx512cd", 7, 1, 28),
    feature("avx512vbmi", 7, 2, 1),
    feature("avx512_vbmi2", 7, 2, 6),
    feature("gfni", 7, 2, 8),
    feature("vaes", 7, 2, 9),
    feature("vpclmulqdq", 7, 2, 10),
    feature("avx512_vnni", 7, 2, 11),
    feature("avx512_bitalg", 7, 2, 12),
    feature("avx512_vpopcntdq", 7, 2, 14),
    feature("avx512_fp16", 7, 3, 23),
];

/// The feature of this name.
pub fn feature_named(name: &str) -> Option<Feature> {
    FEATURES.into_iter().find(|feature| feature.name == name)
}

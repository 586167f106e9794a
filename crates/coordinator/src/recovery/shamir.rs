//! Shamir's secret sharing over GF(2^8) with the polynomial of AES.
//!
//! A share is the values of one polynomial per secret byte at x, followed by x itself. x is never
//! zero, where the secret is. Arithmetic is without tables or branches on secret values.

/// a·b modulo x^8 + x^4 + x^3 + x + 1.
fn multiply(a: u8, b: u8) -> u8 {
    let (mut a, mut product) = (a, 0u8);
    for bit in 0..8 {
        product ^= a & 0u8.wrapping_sub(b >> bit & 1);
        let carry = 0u8.wrapping_sub(a >> 7);
        a = (a << 1) ^ (carry & 0x1b);
    }
    product
}

/// a^254, the inverse (0 for 0).
fn invert(a: u8) -> u8 {
    let mut power = a;
    let mut result = 1;
    // 254 = 0b11111110
    for _ in 0..7 {
        power = multiply(power, power);
        result = multiply(result, power);
    }
    result
}

/// Splits a secret into `count` shares, of which `threshold` give it back.
pub fn split(secret: &[u8], count: u8, threshold: u8) -> Result<Vec<Vec<u8>>, getrandom::Error> {
    debug_assert!(threshold >= 2 && threshold <= count);
    let mut places: Vec<u8> = (1..=255).collect();
    // Random places, so that a share does not tell its number.
    for last in (1..places.len()).rev() {
        let mut random = [0; 8];
        getrandom::fill(&mut random)?;
        places.swap(
            last,
            (u64::from_le_bytes(random) % (last as u64 + 1)) as usize,
        );
    }
    let mut shares: Vec<Vec<u8>> = vec![Vec::with_capacity(secret.len() + 1); usize::from(count)];
    let mut coefficients = vec![0; usize::from(threshold) - 1];
    for byte in secret {
        getrandom::fill(&mut coefficients)?;
        for (share, x) in shares.iter_mut().zip(&places) {
            let value = coefficients
                .iter()
                .rev()
                .fold(0, |value, coefficient| multiply(value ^ coefficient, *x));
            share.push(value ^ byte);
        }
    }
    for (share, x) in shares.iter_mut().zip(&places) {
        share.push(*x);
    }
    zeroize::Zeroize::zeroize(&mut coefficients);
    Ok(shares)
}

/// Combines shares; `None` when they do not fit together.
pub fn combine(shares: &[Vec<u8>]) -> Option<Vec<u8>> {
    let length = shares.first()?.len();
    if length < 2 || shares.iter().any(|share| share.len() != length) {
        return None;
    }
    let places: Vec<u8> = shares.iter().map(|share| share[length - 1]).collect();
    for (number, x) in places.iter().enumerate() {
        if *x == 0 || places[..number].contains(x) {
            return None;
        }
    }
    // Lagrange at zero: the factor of share i is the product of x_j / (x_j - x_i).
    let factors: Vec<u8> = places
        .iter()
        .map(|x| {
            places
                .iter()
                .filter(|other| *other != x)
                .fold(1, |product, other| {
                    multiply(product, multiply(*other, invert(other ^ x)))
                })
        })
        .collect();
    let secret = (0..length - 1)
        .map(|at| {
            shares
                .iter()
                .zip(&factors)
                .fold(0, |sum, (share, factor)| sum ^ multiply(share[at], *factor))
        })
        .collect();
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_is_that_of_aes() {
        assert_eq!(multiply(0x57, 0x83), 0xc1);
        assert_eq!(multiply(0x57, 0x13), 0xfe);
        assert_eq!(invert(0), 0);
        for a in 1..=255 {
            assert_eq!(multiply(a, invert(a)), 1);
        }
    }

    #[test]
    fn any_threshold_of_shares_gives_the_secret_and_fewer_do_not() {
        let secret: Vec<u8> = (0..32).collect();
        let shares = split(&secret, 5, 3).unwrap();
        assert!(shares.iter().all(|share| share.len() == 33));
        for (a, first) in shares.iter().enumerate() {
            for (b, second) in shares.iter().enumerate() {
                for (c, third) in shares.iter().enumerate() {
                    let chosen = [first, second, third].map(Clone::clone);
                    match a != b && b != c && a != c {
                        true => assert_eq!(combine(&chosen).unwrap(), secret),
                        false => assert_eq!(combine(&chosen), None),
                    }
                }
            }
        }
        assert_ne!(combine(&shares[..2]).unwrap(), secret);
        assert_eq!(combine(&shares).unwrap(), secret);
    }

    #[test]
    fn shares_that_do_not_fit_are_refused() {
        assert_eq!(combine(&[]), None);
        assert_eq!(combine(&[vec![1]]), None);
        assert_eq!(combine(&[vec![1, 0], vec![2, 1]]), None);
        assert_eq!(combine(&[vec![1, 2], vec![2, 3, 1]]), None);
    }
}

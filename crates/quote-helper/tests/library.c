/* A stand-in for libsgx_dcap_ql.so.1: marks what it is given, and fails where a test asks for it. */
#include <stdint.h>
#include <string.h>
#include <stdlib.h>

static int failing(const char *function) {
    const char *wanted = getenv("FAKE_FAILS");
    return wanted && !strcmp(wanted, function);
}

uint32_t sgx_qe_get_target_info(uint8_t *target) {
    if (failing("target")) return 0xe011; /* SGX_QL_NO_PLATFORM_CERT_DATA */
    if ((uintptr_t)target % 512) return 0xe002;
    memset(target, 0x17, 512);
    return 0;
}

uint32_t sgx_qe_get_quote_size(uint32_t *size) {
    if (failing("size")) return 0xe019; /* SGX_QL_NETWORK_ERROR */
    *size = failing("large") ? 1u << 30 : 48 + 384 + 4;
    return 0;
}

#ifndef WITHOUT_QUOTE
uint32_t sgx_qe_get_quote(const uint8_t *report, uint32_t size, uint8_t *quote) {
    if (failing("quote")) return 0xe012; /* SGX_QL_OUT_OF_EPC */
    if (size != 48 + 384 + 4) return 0xe002;
    memset(quote, 0, size);
    quote[0] = 3;
    memcpy(quote + 48, report, 384);
    return 0;
}
#endif

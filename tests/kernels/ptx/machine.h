// A GPU that runs translated PTX: a fibre for each thread of a block, blocks one after the other in random order,
// every access to memory checked byte by byte. What the translated kernels call is here; the machine is machine.cpp.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;
using f32 = float;
using f64 = double;

struct Thread {
    void* stack_pointer;
    u32 x, y, z;
    u32 number;        // among all threads of the launch, from 1
    int state;         // RUNS, WAITS or ENDED
    int barrier_line;  // where it waits
};
enum { RUNS, WAITS, ENDED };

struct Launch {
    u32 grid[3], block[3];
    const u64* parameters;
    u32 dynamic_bytes;
    u64 garbage;  // what registers hold before they are written
};

extern Launch launch;
extern Thread* current;
extern u32 block_index[3];

void* global_bytes(u64 address, int size, bool store, bool read_only_path, int line, const void* value);
void* shared_bytes(u64 address, int size, bool store, int line, const void* value);
u32 shared_add(u64 address, u32 value, int line);
void barrier(int line);
void maybe_yield();
void complain(const std::string& text);

// Counts what is run: a kernel whose threads read nonsense may find a loop that does not end.
extern s64 steps_left;
void end_thread();
inline void step() {
    if (--steps_left < 0) end_thread();
}

template <class T>
T load_global(u64 address, bool read_only_path, int line) {
    maybe_yield();
    T value;
    memcpy(&value, global_bytes(address, sizeof(T), false, read_only_path, line, nullptr), sizeof(T));
    return value;
}
template <class T>
void store_global(u64 address, T value, int line) {
    maybe_yield();
    memcpy(global_bytes(address, sizeof(T), true, false, line, &value), &value, sizeof(T));
}
template <class T>
T load_shared(u64 address, int line) {
    maybe_yield();
    T value;
    memcpy(&value, shared_bytes(address, sizeof(T), false, line, nullptr), sizeof(T));
    return value;
}
template <class T>
void store_shared(u64 address, T value, int line) {
    maybe_yield();
    memcpy(shared_bytes(address, sizeof(T), true, line, &value), &value, sizeof(T));
}

// The same bits as another type.
template <class To, class From>
To bits(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    memcpy(&result, &value, sizeof(To));
    return result;
}

// As PTX says: a NaN gives way to the other operand, and -0 is below +0.
template <class T>
T ptx_min(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == 0 && b == 0) return std::signbit(a) ? a : b;
    return a < b ? a : b;
}
template <class T>
T ptx_max(T a, T b) {
    if (a != a) return b;
    if (b != b) return a;
    if (a == 0 && b == 0) return std::signbit(a) ? b : a;
    return a > b ? a : b;
}
// Shifts by the width or more give 0, or the sign.
template <class T>
T ptx_shl(T value, u32 count) {
    return count >= sizeof(T) * 8 ? 0 : (T)(value << count);
}
template <class T>
T ptx_shr(T value, u32 count) {
    if (count < sizeof(T) * 8) return (T)(value >> count);
    return std::is_signed<T>::value && value < 0 ? (T)-1 : 0;
}
template <class T>
T ptx_bfi(T inserted, T base, u32 position, u32 length) {
    const u32 width = sizeof(T) * 8;
    position &= 255, length &= 255;
    if (position >= width || length == 0) return base;
    const T mask = (T)(length >= width ? ~(T)0 : (((T)1 << length) - 1)) << position;
    return (base & ~mask) | ((inserted << position) & mask);
}
template <class T>
T ptx_divide(T a, T b, bool remainder, int line) {
    if (b == 0) {
        complain("division by zero, line " + std::to_string(line));
        return 0;
    }
    return remainder ? a % b : a / b;
}
// Towards zero; what does not fit becomes the nearest that does, and NaN becomes 0.
template <class To, class From>
To ptx_truncate(From value) {
    const From end = std::ldexp((From)1, sizeof(To) * 8 - 1);
    if (value != value) return 0;
    if (value >= end) return std::numeric_limits<To>::max();
    return value < -end ? std::numeric_limits<To>::min() : (To)value;
}
inline u32 ptx_prmt(u32 a, u32 b, u32 selector) {
    const u64 both = (u64)b << 32 | a;
    u32 result = 0;
    for (int i = 0; i < 4; i++) {
        const u32 which = selector >> (4 * i) & 15;
        u32 byte = both >> (8 * (which & 7)) & 255;
        if (which & 8) byte = byte & 128 ? 255 : 0;
        result |= byte << (8 * i);
    }
    return result;
}
inline u32 ptx_dp4a(u32 a, u32 b, u32 sum) {
    for (int i = 0; i < 4; i++) sum += (a >> (8 * i) & 255) * (b >> (8 * i) & 255);
    return sum;
}
inline u16 to_half(f32 value) { return _cvtss_sh(value, 0); }
inline f32 from_half(u16 value) { return _cvtsh_ss(value); }

struct Kernel {
    const char* name;
    void (*run)();
    u32 static_shared;
};
extern const Kernel kernels[];
extern const int kernel_count;

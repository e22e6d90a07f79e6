#include "machine.h"

#include <sys/mman.h>

#include <map>

namespace {

// What is known of a byte: who wrote and read it last, and in which interval between barriers.
struct Seen {
    u32 writer = 0, write_interval = 0, reader = 0, read_interval = 0;
    bool initialised = false, many_readers = false;
};
const u32 BY_ATOMICS = ~0u;
const std::string SHARED_NAME = "shared memory";

struct Region {
    u64 address, size;
    bool read_only;
    std::string name;
    std::vector<Seen> seen;
};

std::vector<Region> regions;
std::map<std::string, int> complaints;
std::string complaints_text;
std::vector<u8> shared;
std::vector<Seen> shared_seen;
u32 interval;
u64 random_state;
u32 yield_threshold;
int left_out_barrier = -1;
void* scheduler_stack_pointer;
void (*kernel_code)();

// A launch that goes on for longer, or has more to complain of, is ended.
const s64 MOST_STEPS = 100'000'000;
const int MOST_COMPLAINTS = 2000;
int complaint_count;
const size_t STACK_BYTES = 96 * 1024;
std::vector<char*> stacks;

u64 random_word() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state * 0x2545F4914F6CDD1Dull;
}

u32 block_of(u32 thread) { return (thread - 1) / 1024; }

std::string place(const std::string& name, int line) { return name + ", line " + std::to_string(line); }

void check(Seen* seen, int size, bool store, bool read_only_path, bool same, const std::string& name, int line,
           bool is_shared) {
    const u32 me = current->number;
    for (int i = 0; i < size; i++) {
        Seen& byte = seen[i];
        const bool other_block_wrote = !is_shared && byte.writer && block_of(byte.writer) != block_of(me);
        const bool other_block_read = !is_shared && byte.reader && block_of(byte.reader) != block_of(me);
        if (!store && !byte.initialised) complain("uninitialised read of " + place(name, line));
        if (byte.writer && byte.writer != me && (other_block_wrote || byte.write_interval == interval) && !(store && same))
            complain((store ? "race of two writes to " : "race of a write and a read of ") + place(name, line));
        if (read_only_path && byte.writer) complain("ld.global.nc of written " + place(name, line));
        if (store && byte.reader && (byte.many_readers || byte.reader != me) && !same &&
            (other_block_read || byte.read_interval == interval))
            complain("race of a read and a write to " + place(name, line));
        if (store) {
            byte.writer = me, byte.write_interval = interval, byte.initialised = true;
        } else {
            byte.many_readers = byte.read_interval == interval && (byte.many_readers || (byte.reader && byte.reader != me));
            byte.reader = me, byte.read_interval = interval;
        }
    }
}

}  // namespace

Launch launch;
s64 steps_left;
Thread* current;
u32 block_index[3];

// Saves the callee's registers on the stack, keeps its place in *save and goes on where `to` was saved.
extern "C" void switch_to(void** save, void* to);
asm(R"(
.text
.globl switch_to
switch_to:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp, (%rdi)
 movq %rsi, %rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
)");

static void yield() { switch_to(&current->stack_pointer, scheduler_stack_pointer); }

void maybe_yield() {
    if (yield_threshold && (u32)random_word() < yield_threshold) yield();
}

void end_thread() {
    complain("no end after so many steps");
    current->state = ENDED;
    yield();
}

void barrier(int line) {
    if (line == left_out_barrier) return;
    current->state = WAITS;
    current->barrier_line = line;
    yield();
}

void complain(const std::string& text) {
    if (++complaint_count == MOST_COMPLAINTS) steps_left = 0;
    if (complaints.size() < 400 || complaints.count(text)) complaints[text]++;
}

void* global_bytes(u64 address, int size, bool store, bool read_only_path, int line, const void* value) {
    if (address % size) complain(place("misaligned access of " + std::to_string(size) + " bytes", line));
    for (Region& region : regions)
        if (address >= region.address && address + size <= region.address + region.size) {
            if (store && region.read_only) complain(place("store to read-only " + region.name, line));
            const bool same = store && !memcmp((void*)address, value, size);
            check(&region.seen[address - region.address], size, store, read_only_path, same, region.name, line, false);
            return (void*)address;
        }
    std::string near = "nothing";
    for (const Region& region : regions)
        if (address + 4096 > region.address && address < region.address + region.size + 4096) near = region.name;
    complain(place(std::string(store ? "store" : "load") + " out of bounds near " + near, line));
    static u8 nowhere[64];
    memset(nowhere, 0xEE, sizeof nowhere);
    return nowhere;
}

void* shared_bytes(u64 address, int size, bool store, int line, const void* value) {
    static u8 nowhere[64];
    if (address % size) complain(place("misaligned access of shared memory", line));
    if (address + size > shared.size()) {
        complain(place("access out of bounds of shared memory", line));
        return nowhere;
    }
    const bool same = store && !memcmp(&shared[address], value, size);
    check(&shared_seen[address], size, store, false, same, SHARED_NAME, line, true);
    return &shared[address];
}

u32 shared_add(u64 address, u32 value, int line) {
    maybe_yield();
    if (address % 4 || address + 4 > shared.size()) {
        complain(place("atomic out of bounds of shared memory", line));
        return 0;
    }
    for (int i = 0; i < 4; i++) {
        Seen& byte = shared_seen[address + i];
        if (!byte.initialised) complain(place("uninitialised read of shared memory", line));
        if (byte.writer && byte.writer != current->number && byte.writer != BY_ATOMICS && byte.write_interval == interval)
            complain(place("race of a write and an atomic on shared memory", line));
        byte.writer = BY_ATOMICS, byte.write_interval = interval;
    }
    u32 before, after;
    memcpy(&before, &shared[address], 4);
    after = before + value;
    memcpy(&shared[address], &after, 4);
    return before;
}

static void fibre() {
    kernel_code();
    current->state = ENDED;
    yield();
}

// Begins a fibre on a stack of its own, as if it had been left by switch_to at the first instruction of `fibre`.
static void* first_stack_pointer(char* stack) {
    void** top = (void**)((u64)(stack + STACK_BYTES - 64) & ~63ull);
    *--top = nullptr;
    *--top = (void*)fibre;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    return top;
}

static void run_block(u64 number) {
    const u32* size = launch.block;
    const u32 count = size[0] * size[1] * size[2];
    block_index[0] = number % launch.grid[0];
    block_index[1] = number / launch.grid[0] % launch.grid[1];
    block_index[2] = number / launch.grid[0] / launch.grid[1];
    interval = 1;
    for (u8& byte : shared) byte = random_word();
    std::fill(shared_seen.begin(), shared_seen.end(), Seen());
    std::vector<Thread> threads(count);
    std::vector<u32> ready(count);
    for (u32 i = 0; i < count; i++) {
        threads[i] = {first_stack_pointer(stacks[i]), i % size[0], i / size[0] % size[1], i / size[0] / size[1],
                      (u32)(number * 1024 + i + 1), RUNS, 0};
        ready[i] = i;
    }
    u32 alive = count;
    while (alive) {
        if (ready.empty()) {  // all that are left wait
            if (alive != count) complain("barrier after threads of the block have ended");
            int line = -1;
            for (u32 i = 0; i < count; i++)
                if (threads[i].state == WAITS) {
                    if (line >= 0 && line != threads[i].barrier_line) complain("threads wait at different barriers");
                    line = threads[i].barrier_line;
                    threads[i].state = RUNS;
                    ready.push_back(i);
                }
            interval++;
            continue;
        }
        const u64 which = random_word() % ready.size();
        current = &threads[ready[which]];
        switch_to(&scheduler_stack_pointer, current->stack_pointer);
        if (current->state == RUNS) continue;
        alive -= current->state == ENDED;
        ready[which] = ready.back();
        ready.pop_back();
    }
}

extern "C" {

void machine_clear() {
    regions.clear();
    complaints.clear();
}

void machine_leave_out_barrier(int line) { left_out_barrier = line; }

void machine_add_region(u64 address, u64 size, int read_only, int initialised, const char* name) {
    regions.push_back({address, size, read_only != 0, name, std::vector<Seen>(size)});
    for (Seen& byte : regions.back().seen) byte.initialised = initialised;
}

// How many bytes of a region nobody wrote, of those that came uninitialised.
long machine_unwritten(const char* name) {
    long count = 0;
    for (const Region& region : regions)
        if (region.name == name)
            for (const Seen& byte : region.seen) count += !byte.initialised;
    return count;
}

// Runs a kernel; returns 0, or -1 where there is none of that name. `yields`: the probability that a thread gives way at an access.
int machine_launch(const char* name, const u32* grid, const u32* block, u32 dynamic_bytes, const u64* parameters,
                   u64 seed, double yields) {
    const Kernel* kernel = std::find_if(kernels, kernels + kernel_count, [&](auto& one) { return !strcmp(one.name, name); });
    if (kernel == kernels + kernel_count) return -1;
    std::copy(grid, grid + 3, launch.grid);
    std::copy(block, block + 3, launch.block);
    launch.parameters = parameters;
    launch.dynamic_bytes = dynamic_bytes;
    launch.garbage = seed * 0x9E3779B97F4A7C15ull | 1;
    steps_left = MOST_STEPS;
    complaint_count = 0;
    random_state = seed * 0xD1342543DE82EF95ull | 1;
    yield_threshold = (u32)(yields * 4294967295.0);
    kernel_code = kernel->run;
    while (stacks.size() < (size_t)block[0] * block[1] * block[2])
        stacks.push_back((char*)mmap(nullptr, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    shared.resize(kernel->static_shared + dynamic_bytes);
    shared_seen.resize(shared.size());
    for (Region& region : regions)
        for (Seen& byte : region.seen) {
            const bool initialised = byte.initialised;
            byte = Seen();
            byte.initialised = initialised;
        }
    std::vector<u64> order((u64)grid[0] * grid[1] * grid[2]);
    for (u64 i = 0; i < order.size(); i++) order[i] = i;
    for (u64 i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_word() % i]);
    for (u64 number : order) run_block(number);
    return 0;
}

const char* machine_complaints() {
    complaints_text.clear();
    for (const auto& [text, count] : complaints) complaints_text += text + " (" + std::to_string(count) + "×)\n";
    return complaints_text.c_str();
}
}

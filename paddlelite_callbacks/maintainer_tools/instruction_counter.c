/* qemu-user plugin: count the guest's instructions and write the sum to stderr at each close() of MARKED. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define CLOSE 57 /* number of the system call on arm64 */
#define MARKED (-424242) /* no file descriptor: the call fails and changes nothing */

typedef uint64_t plugin_id;
struct block;
int qemu_plugin_version = 1;
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct block *));
extern size_t qemu_plugin_tb_n_insns(const struct block *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct block *, int, void *, uint64_t);
typedef void (*on_system_call)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                               uint64_t, uint64_t, uint64_t);
extern void qemu_plugin_register_vcpu_syscall_cb(plugin_id, on_system_call);

static uint64_t count;

static void translated(plugin_id id, struct block *block) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, 0, &count, qemu_plugin_tb_n_insns(block));
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t first, uint64_t b, uint64_t c, uint64_t d,
                   uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    if (number == CLOSE && (int32_t)first == MARKED) fprintf(stderr, "INSTRUCTIONS %llu\n", (unsigned long long)count);
}

int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}

// SPDX-License-Identifier: Apache-2.0
/*
 * The stage: the EFI program that the firmware starts in the kernel's place, and measures as the kernel.
 *
 * It carries ACPI tables and a kernel. It puts its tables in the place of the host's, removes the host's SMBIOS tables,
 * and starts the kernel. So no code of the host (AML) reaches the kernel, with any number of vCPUs, and the kernel
 * chooses no work-around by names that the host gave. Every failure ends the machine.
 *
 * Everything that it reads is in its own file, except for the boot services and the load options, which come from the
 * measured firmware. Sections are those of the UEFI specification 2.10. sevsnp/stage/image.py puts the file together.
 */

typedef __UINT8_TYPE__ uint8_t;
typedef __UINT16_TYPE__ uint16_t;
typedef __UINT32_TYPE__ uint32_t;
typedef __UINT64_TYPE__ uint64_t;
#define offsetof(type, member) __builtin_offsetof(type, member)
#define EFIAPI __attribute__((ms_abi))
#define UNUSED(count, name) void *name[count]

typedef uint64_t status; // 0 is success; the highest bit marks an error (appendix D)
typedef void *handle;

struct guid {
    uint32_t a;
    uint16_t b, c;
    uint8_t d[8];
};

// 4.6: the GUIDs of the tables that the host makes; 9.1: that of the loaded image.
enum { ACPI_2, ACPI_1, SMBIOS, SMBIOS_3, HOSTS };
static const struct guid hosts[HOSTS] = {
    [ACPI_2] = {0x8868e871, 0xe4f1, 0x11d3, {0xbc, 0x22, 0, 0x80, 0xc7, 0x3c, 0x88, 0x81}},
    [ACPI_1] = {0xeb9d2d30, 0x2d88, 0x11d3, {0x9a, 0x16, 0, 0x90, 0x27, 0x3f, 0xc1, 0x4d}},
    [SMBIOS] = {0xeb9d2d31, 0x2d88, 0x11d3, {0x9a, 0x16, 0, 0x90, 0x27, 0x3f, 0xc1, 0x4d}},
    [SMBIOS_3] = {0xf2fd1544, 0x9794, 0x4a2c, {0x99, 0x2e, 0xe5, 0xbb, 0xcf, 0x20, 0xe3, 0x94}},
};
static const struct guid image_guid = {0x5b1b31a1, 0x9562, 0x11d2, {0x8e, 0x3f, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};

enum { ALLOCATE_ADDRESS = 2, ACPI_RECLAIM_MEMORY = 9, RESET_SHUTDOWN = 2, PAGE = 4096 };

// 4.4, EFI_BOOT_SERVICES: a header of 24 bytes, then pointers. Only those that are called have their types.
struct boot_services {
    uint8_t header[24];
    UNUSED(2, task_priority);
    status(EFIAPI *allocate_pages)(uint32_t how, uint32_t type, uint64_t pages, uint64_t *address); // 7.2.1
    UNUSED(13, memory_events_protocols);
    status(EFIAPI *handle_protocol)(handle, const struct guid *, void **interface); // 7.3.7
    UNUSED(4, protocols);
    status(EFIAPI *install_configuration_table)(const struct guid *, const void *table); // 7.5.6
    status(EFIAPI *load_image)(uint8_t boot_policy, handle parent, void *path, const void *source, uint64_t size,
                               handle *image); // 7.4.1
    status(EFIAPI *start_image)(handle, uint64_t *exit_size, uint16_t **exit_data); // 7.4.2
    UNUSED(17, others);
    void(EFIAPI *copy_mem)(void *to, const void *from, uint64_t size); // 7.5.3
};

// 4.5: EFI_RUNTIME_SERVICES.
struct runtime_services {
    uint8_t header[24];
    UNUSED(10, others);
    void(EFIAPI *reset_system)(uint32_t type, status, uint64_t size, void *data); // 8.5.1
};

// 12.4: EFI_SIMPLE_TEXT_OUTPUT_PROTOCOL.
struct text_output {
    void *reset;
    status(EFIAPI *output_string)(struct text_output *, const uint16_t *);
};

// 4.3: EFI_SYSTEM_TABLE, 4.6: EFI_CONFIGURATION_TABLE.
struct configuration_table {
    struct guid guid;
    const void *table;
};
struct system_table {
    uint8_t header[24];
    UNUSED(5, vendor_and_input);
    struct text_output *output;
    UNUSED(2, error_output);
    struct runtime_services *runtime;
    struct boot_services *boot;
    uint64_t count;
    struct configuration_table *tables;
};

// 9.1: EFI_LOADED_IMAGE_PROTOCOL.
struct loaded_image {
    UNUSED(6, revision_parent_system_device_path);
    uint32_t options_size;
    void *options;
};

_Static_assert(offsetof(struct boot_services, handle_protocol) == 0x98, "4.4");
_Static_assert(offsetof(struct boot_services, copy_mem) == 0x160, "4.4");
_Static_assert(offsetof(struct runtime_services, reset_system) == 0x68, "4.5");
_Static_assert(offsetof(struct system_table, tables) == 0x70, "4.3");
_Static_assert(offsetof(struct loaded_image, options) == 0x38, "9.1");

// What the file carries. The linker script has the places; sevsnp/stage/image.py writes the content.
extern const struct {
    uint64_t tables_address, tables_size, kernel_size;
} carried __attribute__((visibility("hidden")));
extern const uint8_t tables[] __attribute__((visibility("hidden")));
extern const uint8_t kernel[] __attribute__((visibility("hidden")));

// Nothing but the end of the machine may follow a failure: the firmware would go on without this program.
static _Noreturn void end(struct system_table *system, const uint16_t *step) {
    system->output->output_string(system->output, u"stage: failed: ");
    system->output->output_string(system->output, step);
    system->output->output_string(system->output, u"\r\n");
    system->runtime->reset_system(RESET_SHUTDOWN, 0, 0, 0);
    for (;;)
        __asm__ volatile("cli; hlt");
}

static int is(const struct guid *left, const struct guid *right) {
    typedef uint64_t __attribute__((may_alias, aligned(4))) half;
    const half *one = (const void *)left, *other = (const void *)right;
    return one[0] == other[0] && one[1] == other[1];
}

__attribute__((section(".text.entry"))) status EFIAPI entry(handle self, struct system_table *system) {
    struct boot_services *boot = system->boot;

    // 1. Our tables: at the address for which they were made, in memory that the kernel does not reuse.
    uint64_t address = carried.tables_address;
    uint64_t pages = (carried.tables_size + PAGE - 1) / PAGE;
    if (boot->allocate_pages(ALLOCATE_ADDRESS, ACPI_RECLAIM_MEMORY, pages, &address))
        end(system, u"memory for the ACPI tables");
    boot->copy_mem((void *)address, tables, carried.tables_size);

    // 2. Remove the host's tables (NULL removes; an error says that there are none), and install ours, which begin
    // with their RSDP.
    for (int i = 0; i < HOSTS; i++)
        boot->install_configuration_table(&hosts[i], 0);
    if (boot->install_configuration_table(&hosts[ACPI_2], (void *)address))
        end(system, u"installing the ACPI tables");

    // 3. The kernel: from this file, with the load options that the firmware gave us (the measured command line behind
    // the firmware's own initrd=). It asks the firmware for the initrd itself (Linux's EFI_LOAD_FILE2_PROTOCOL), and
    // has no device, so it can read no file.
    handle image;
    struct loaded_image *from, *to;
    if (boot->load_image(0, self, 0, kernel, carried.kernel_size, &image))
        end(system, u"loading the kernel");
    if (boot->handle_protocol(self, &image_guid, (void **)&from))
        end(system, u"the stage's load options");
    if (boot->handle_protocol(image, &image_guid, (void **)&to))
        end(system, u"the kernel's load options");
    to->options = from->options;
    to->options_size = from->options_size;

    // 4. No table of the host may be left: which of two a kernel takes is its own choice.
    uint64_t ours = 0, others = 0;
    for (uint64_t i = 0; i < system->count; i++)
        for (int j = 0; j < HOSTS; j++)
            if (is(&system->tables[i].guid, &hosts[j]))
                *(system->tables[i].table == (void *)address ? &ours : &others) += 1;
    if (ours != 1 || others != 0)
        end(system, u"removing the host's tables");
    boot->start_image(image, 0, 0);
    end(system, u"the kernel has returned");
}

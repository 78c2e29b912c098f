/* The probe: a guest without an operating system, of a few KiB. It executes the
 * commands of internal/vmm/vmmtest/guest.go, so that a VMM can be tested on a host
 * that emulates the guest's instructions, too slowly and incompletely for Linux.
 *
 * It implements as much of the agent's protocol as hatchd needs to consider the guest
 * ready (agent.c). "count" answers with a number that only increases, "who" with the
 * guest's hostname, address and MAC.
 *
 * This file has the start and the commands; each other file has one device.
 *
 * At the start the VMM has loaded this program at the address that it was linked for,
 * and the command line into memory. The processor is in 64-bit mode, with a page table
 * that maps the first GiB to itself. Interrupts are off, and stay off. */
#include "machine.h"

void begin(void);

static u8 stack[16 << 10] __attribute__((aligned(16), used));

__attribute__((naked, section(".text.start"))) void _start(void)
{
	__asm__ volatile("lea stack + %c0(%%rip), %%rsp\n\t"
			 "call begin\n\t"
			 "1: hlt; jmp 1b" ::"i"(sizeof stack));
}

/* The devices' registers are in the fourth GiB, which is not mapped at the start. */
static void map_devices(void)
{
	enum { PRESENT = 1, WRITABLE = 2, HUGE = 0x80 };
	static u64 directory[512] __attribute__((aligned(4096)));
	u64 *level4, *level3;
	for (u64 i = 0; i < 512; i++)
		directory[i] = (0xc0000000 + (i << 21)) | PRESENT | WRITABLE | HUGE;
	__asm__ volatile("mov %%cr3, %0" : "=r"(level4));
	level3 = (u64 *)(level4[0] & ~0xffful);
	level3[3] = (u64)directory | PRESENT | WRITABLE;
	__asm__ volatile("mov %0, %%cr3" ::"r"(level4) : "memory");
}

static const char *command_line = (const char *)0x20000;

const char *argument(const char *key)
{
	for (const char *word = command_line; *word; word = after_word(word))
		if (starts_with(word, key))
			return word + length(key);
	return "";
}

/* Each device is announced as virtio_mmio.device=SIZE@ADDRESS:INTERRUPT. */
static void find_devices(void)
{
	for (const char *word = command_line; *word; word = after_word(word)) {
		if (!starts_with(word, "virtio_mmio.device="))
			continue;
		while (*word && *word != '@')
			word++;
		u64 base = to_number(word + 1);
		switch (device_of(base)) {
		case DEVICE_BLOCK: block_add(base); break;
		case DEVICE_NET: net_add(base); break;
		case DEVICE_BALLOON: balloon_add(base); break;
		case DEVICE_VSOCK: vsock_add(base); break;
		}
	}
}

/* The serials of the disks are on the command line, in the order of the disks. */
static const char *disk_names(void) { return argument("hatch.disks="); }

static int disk_named(const char *name)
{
	const char *names = disk_names();
	for (int i = 0; i < block_count(); i++) {
		if (same_word(names, name))
			return i;
		while (*names && *names != ' ' && *names != ',')
			names++;
		if (*names == ',')
			names++;
	}
	return -1;
}

/* Ends as Linux does under this VMM: it prints a message for the reason, and then
 * asks the keyboard controller for a reset. */
void end_machine(enum ending why)
{
	enum { PORT_KEYBOARD_COMMAND = 0x64, COMMAND_RESET = 0xfe };
	static const char *const messages[] = {
		[POWER_OFF] = "reboot: Power down", [REBOOT] = "reboot: Restarting system", [PANIC] = "Kernel panic - not syncing: asked to",
	};
	say_aside(0, 0);
	say("\r\n[    0.000000] ");
	say(messages[why]);
	say("\r\n");
	out8(PORT_KEYBOARD_COMMAND, COMMAND_RESET);
}

/* The power button: the VMM types Ctrl, Alt and Delete. */
static int was_button_pressed(void)
{
	enum { PORT_KEY = 0x60, PORT_KEYBOARD_STATUS = 0x64, HAS_KEY = 1, KEY_DELETE = 0x71 };
	return in8(PORT_KEYBOARD_STATUS) & HAS_KEY && in8(PORT_KEY) == KEY_DELETE;
}

/* Hatch recognises a kernel by this banner, which every Linux has. */
const char banner[] __attribute__((used)) = "Linux version 0.0-probe (a guest for tests)";

u64 boot_number;
static u64 rounds;           /* of the main loop */
static u64 ticks, next_tick; /* ticks: 0 until the command tick */
static int is_deaf;

static u8 buffer[64 << 10] __attribute__((aligned(4096)));

static void write_disk(const char *words)
{
	int disk = disk_named(words);
	const char *word = after_word(words);
	if (disk < 0 || !block_read(disk, 0, buffer, 512)) {
		say("write: cannot read the disk\r\n");
		return;
	}
	memcpy(buffer, word, length(word));
	say(block_write(disk, 0, buffer, 512) ? "write: ok\r\n" : "write: the device refuses\r\n");
}

static void read_disk(const char *words)
{
	int disk = disk_named(words);
	u64 n = to_number(after_word(words));
	if (disk < 0 || n > 512 || !block_read(disk, 0, buffer, 512)) {
		say("read: cannot\r\n");
		return;
	}
	say("read: ");
	say_bytes((char *)buffer, n);
	say("\r\n");
}

static void fill_disk(const char *words)
{
	int disk = disk_named(words);
	u64 bytes = to_number(after_word(words)) << 20;
	int ok = disk >= 0;
	for (u64 at = 0; ok && at < bytes; at += sizeof buffer)
		ok = block_write(disk, at / 512, buffer, sizeof buffer);
	say(ok ? "fill: ok\r\n" : "fill: cannot\r\n");
}

static void list_disks(void)
{
	const char *names = disk_names();
	say("disks:");
	for (int i = 0; i < block_count(); i++) {
		say(" ");
		while (*names && *names != ' ' && *names != ',')
			say_bytes(names++, 1);
		if (*names == ',')
			names++;
	}
	say("\r\n");
}

static void say_mac(void)
{
	u8 mac[6];
	say("mac: ");
	if (net_mac(mac))
		for (int i = 0; i < 6; i++) {
			if (i)
				say(":");
			say_hex(mac + i, 1);
		}
	say("\r\n");
}

static void send_frame(const char *hex)
{
	u32 n = 0;
	for (; n < 1500 && hex_digit(hex[0]) >= 0 && hex_digit(hex[1]) >= 0; hex += 2)
		buffer[n++] = hex_digit(hex[0]) << 4 | hex_digit(hex[1]);
	say(net_send(buffer, n) ? "send: ok\r\n" : "send: cannot\r\n");
}

static void burn(u64 ms)
{
	for (u64 until = clock_ms() + ms; clock_ms() < until;)
		;
	say("burn: ok\r\n");
}

/* The data of keep is above the program: in each page a number computed from the
 * word. */
enum { PAGE = 4096, FIRST_KEPT = 32 << 20 };
static struct keeping { char word[32]; u64 seed, begin, end; } keepings[16];
static int keeping_count;

static u64 kept_number(const struct keeping *k, u64 page) { return (k->seed ^ page) | 1ul << 63; }

static void keep(const char *words)
{
	struct keeping *k = &keepings[keeping_count];
	u64 n = length(words) - length(after_word(words));
	if (keeping_count == COUNT(keepings) || n < 2 || n >= sizeof k->word) {
		say("keep: cannot\r\n");
		return;
	}
	memcpy(k->word, words, n - 1);
	for (u64 i = 0; i < n; i++)
		k->seed = (k->seed ^ k->word[i]) * 1099511628211ul;
	k->begin = keeping_count ? k[-1].end : FIRST_KEPT;
	k->end = k->begin + (to_number(after_word(words)) << 20);
	for (u64 page = k->begin; page < k->end; page += PAGE)
		*(volatile u64 *)page = kept_number(k, page);
	keeping_count++;
	say("keep: ok\r\n");
}

u64 memory_available(void)
{
	u64 used = keeping_count ? keepings[keeping_count - 1].end : FIRST_KEPT;
	return used < MEMORY ? MEMORY - used : 0;
}

static int is_kept(const struct keeping *k)
{
	for (u64 page = k->begin; page < k->end; page += PAGE)
		if (*(volatile u64 *)page != kept_number(k, page))
			return 0;
	return 1;
}

static void say_kept(void)
{
	say("kept:");
	for (int i = 0; i < keeping_count; i++) {
		say(" ");
		say(is_kept(&keepings[i]) ? keepings[i].word : "lost");
	}
	say("\r\n");
}

static void execute(const char *line)
{
	const char *words = after_word(line);
	if (same_word(line, "echo")) {
		say("echo: ");
		say(words);
		say("\r\n");
	} else if (same_word(line, "tick")) {
		if (!ticks)
			ticks = 1;
		next_tick = clock_ms();
	} else if (same_word(line, "deaf")) {
		is_deaf = 1;
		say("deaf: ok\r\n");
	} else if (same_word(line, "keep")) {
		keep(words);
	} else if (same_word(line, "kept")) {
		say_kept();
	} else if (same_word(line, "poweroff")) {
		end_machine(POWER_OFF);
	} else if (same_word(line, "halt")) {
		say("[    0.000000] reboot: Power down\r\n");
		for (;;)
			__asm__ volatile("hlt"); /* with interrupts off: for ever */
	} else if (same_word(line, "reboot")) {
		end_machine(REBOOT);
	} else if (same_word(line, "panic")) {
		end_machine(PANIC);
	} else if (same_word(line, "write")) {
		write_disk(words);
	} else if (same_word(line, "read")) {
		read_disk(words);
	} else if (same_word(line, "fill")) {
		fill_disk(words);
	} else if (same_word(line, "disks")) {
		list_disks();
	} else if (same_word(line, "mac")) {
		say_mac();
	} else if (same_word(line, "send")) {
		send_frame(words);
	} else if (same_word(line, "netup")) {
		net_listen();
		say("netup: ok\r\n");
	} else if (same_word(line, "burn")) {
		burn(to_number(words));
	} else if (same_word(line, "count")) {
		say_number(rounds);
		say("\r\n");
	} else if (same_word(line, "who")) {
		say_self();
	} else if (same_word(line, "cmdline")) {
		say("cmdline: ");
		say(command_line);
		say("\r\n");
	}
}

u64 say_into(char *to, u64 size, const char *line)
{
	say_aside(to, size);
	execute(line);
	u64 said = said_aside();
	say_aside(0, 0);
	return said;
}

static void console_poll(void)
{
	static char line[4096];
	static u64 used;
	int c = heard();
	if (c < 0)
		return;
	if (c == '\n' || c == '\r') {
		line[used] = 0;
		used = 0;
		execute(line);
	} else if (used < sizeof line - 1) {
		line[used++] = c;
	}
}

static void tick(void)
{
	enum { EVERY = 20 }; /* ms */
	if (!ticks || clock_ms() < next_tick)
		return;
	next_tick += EVERY;
	say("tick ");
	say_number(ticks++);
	say("\r\n");
}

void begin(void)
{
	u32 low, high;
	map_devices();
	clock_start();
	find_devices();
	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	boot_number = (u64)high << 32 | low;
	say("guest ready ");
	say_number(boot_number);
	say("\r\n");
	for (;; rounds++) {
		console_poll();
		vsock_poll();
		net_poll();
		balloon_poll();
		tick();
		if (was_button_pressed() && !is_deaf)
			end_machine(REBOOT);
	}
}

/* The machine, for a program without an operating system: ports, memory, a clock, and
 * devices. Start at probe.c. */
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Ports: the processor's second address space, which legacy devices use. */
static inline void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline u8 in8(u16 port)
{
	u8 value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

/* The VMM reads and writes the same memory, so the compiler must not move an access
 * across a barrier. (The processor reorders none that matters here.) */
static inline void barrier(void) { __asm__ volatile("" ::: "memory"); }

/* text.c: functions that a C library would have. */
u64 length(const char *s);
int starts_with(const char *s, const char *prefix);
int same_word(const char *a, const char *b);       /* both end at a space or a comma, too */
const char *after_word(const char *s);             /* what follows the first word */
u64 word_length(const char *s);
const char *after(const char *s, const char *what);  /* what follows its first occurrence; 0 when there is none */
u64 to_number(const char *s);                      /* decimal, or hexadecimal after 0x */
enum { NUMBER = 21 };                              /* bytes of a number as text, with its end */
char *to_digits(char room[NUMBER], u64 n);         /* decimal; within room */
int hex_digit(char c);                             /* -1 when it is none */
void *memcpy(void *to, const void *from, u64 n);   /* the compiler calls these two */
void *memset(void *to, int value, u64 n);

/* serial.c */
void say(const char *s);
void say_bytes(const char *s, u64 n);
void say_number(u64 n);
void say_hex(const u8 *bytes, u64 n);
void say_aside(char *to, u64 size); /* output goes to this buffer from now on, up to size bytes; 0: to the port again */
u64 said_aside(void);               /* how many bytes are in the buffer */
int heard(void);                    /* the next byte from the console, -1 when there is none */

/* clock.c */
void clock_start(void);
u64 clock_ms(void); /* since clock_start; call it every 50 ms or it loses time */

/* virtio.c: one device, its registers mapped at base, and up to three queues. */
#define QUEUE_SIZE 16

struct descriptor { u64 address; u32 length; u16 flags, next; };
enum { DESC_NEXT = 1, DESC_DEVICE_WRITES = 2 };

struct queue {
	struct descriptor table[QUEUE_SIZE] __attribute__((aligned(16)));
	struct { u16 flags, index, ring[QUEUE_SIZE]; } offered __attribute__((aligned(2)));                      /* written by us: the available ring */
	volatile struct { u16 flags, index; struct { u32 id, length; } ring[QUEUE_SIZE]; } used __attribute__((aligned(4))); /* written by the VMM */
	u16 seen; /* index of the next entry of used to read */
};

enum device_id { DEVICE_NET = 1, DEVICE_BLOCK = 2, DEVICE_BALLOON = 5, DEVICE_VSOCK = 19 };

u32 device_of(u64 base); /* which device it is; 0 when none */
u32 config32(u64 base, u32 offset);
void device_start(u64 base, u32 features, struct queue *queues, int count); /* features: bits 0 to 31 of those to negotiate */
void queue_offer(u64 base, struct queue *q, int number, u16 first); /* first: index of the chain's first descriptor */
int queue_done(struct queue *q, u32 *id, u32 *length);                /* 1 when the VMM is done with a chain */

/* block.c */
void block_add(u64 base);
int block_count(void);
int block_read(int disk, u64 sector, u8 *to, u32 bytes);  /* 1 when it worked; bytes is a multiple of 512 */
int block_write(int disk, u64 sector, u8 *from, u32 bytes);

/* net.c */
void net_add(u64 base);
int net_mac(u8 mac[6]);
int net_send(const u8 *frame, u32 length);
void net_listen(void);                    /* from now on, net_poll says what comes */
void net_poll(void);

/* balloon.c */
void balloon_add(u64 base);
void balloon_poll(void);

/* vsock.c */
#define VSOCK_STREAMS 4
void vsock_add(u64 base);
void vsock_poll(void);
void vsock_send(int stream, const u8 *data, u32 length);

/* agent.c */
void agent_begin(int stream);                              /* the host has connected */
void agent_take(int stream, const u8 *data, u32 length);
void say_self(void);                                       /* prints the guest's hostname, address and MAC */

/* probe.c */
enum { MEMORY = 64 << 20 };                                /* bytes that every machine has at least; the guest uses no more */
u64 memory_available(void);                                /* bytes of it that are free */
extern u64 boot_number;                                    /* differs from boot to boot */
const char *argument(const char *key);                     /* the value of a word of the command line; "" when it has none with this key */
u64 say_into(char *to, u64 size, const char *line);        /* executes a line, and returns the length of its output */
enum ending { POWER_OFF, REBOOT, PANIC };
void end_machine(enum ending);

/* The network device: Ethernet frames, each after a header of 12 bytes, which is all
 * zeros without offloads. Firecracker reads a frame only while the queue has buffers
 * for 64 KiB, the largest possible frame. */
#include "machine.h"

enum { RX, TX, QUEUES, HEADER = 12, MOST = 2048, BUFFER = 16 << 10, BUFFERS = 8 };

static u64 device;
static struct queue queues[QUEUES];
static u8 incoming[BUFFERS][BUFFER], outgoing[MOST];

void net_add(u64 base)
{
	device = base;
	device_start(base, 0, queues, QUEUES);
}

int net_mac(u8 mac[6])
{
	if (!device)
		return 0;
	for (int i = 0; i < 6; i++)
		mac[i] = config32(device, i & ~3) >> 8 * (i & 3);
	return 1;
}

int net_send(const u8 *frame, u32 length)
{
	u32 id, unused;
	if (!device || length > MOST - HEADER)
		return 0;
	memset(outgoing, 0, HEADER);
	memcpy(outgoing + HEADER, frame, length);
	queues[TX].table[0] = (struct descriptor){ (u64)outgoing, HEADER + length, 0, 0 };
	queue_offer(device, &queues[TX], TX, 0);
	while (!queue_done(&queues[TX], &id, &unused))
		;
	return 1;
}

void net_listen(void)
{
	for (int i = 0; device && i < BUFFERS; i++) {
		queues[RX].table[i] = (struct descriptor){ (u64)incoming[i], BUFFER, DESC_DEVICE_WRITES, 0 };
		queue_offer(device, &queues[RX], RX, i);
	}
}

void net_poll(void)
{
	u32 id, length;
	if (!device || !queue_done(&queues[RX], &id, &length))
		return;
	say("frame ");
	say_hex(incoming[id] + HEADER, length - HEADER);
	say("\r\n");
	queue_offer(device, &queues[RX], RX, id);
}

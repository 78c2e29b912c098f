/* The agent's channel: streams between host and guest without a network. The host
 * connects to AGENT_PORT; agent.c handles the data. The host's port identifies a
 * stream.
 *
 * Each packet has the sender's buffer space. The guest always has space, and assumes
 * that the host reads its few bytes. */
#include "machine.h"

enum { RX, TX, EVENTS, QUEUES, BUFFERS = 8 };
enum { HOST_CID = 2, AGENT_PORT = 1024, TYPE_STREAM = 1, ROOM = 64 << 10 };
enum op { REQUEST = 1, RESPONSE = 2, RESET = 3, SHUTDOWN = 4, DATA = 5, ROOM_UPDATE = 6, ROOM_REQUEST = 7 };

struct packet {
	u64 from_cid, to_cid;
	u32 from_port, to_port, length;
	u16 type, op;
	u32 flags, room, taken;
	u8 data[4096 - 44];
} __attribute__((packed));

static struct stream {
	u32 port;  /* the host's; 0: not in use */
	u32 taken; /* bytes of data so far */
} streams[VSOCK_STREAMS];

static u64 device;
static u64 our_cid;
static struct queue queues[QUEUES];
static struct packet incoming[BUFFERS], outgoing;
static u32 event;

static void send(struct stream *s, u32 port, enum op op, u32 length)
{
	u32 id, unused;
	outgoing.from_cid = our_cid;
	outgoing.to_cid = HOST_CID;
	outgoing.from_port = AGENT_PORT;
	outgoing.to_port = port;
	outgoing.length = length;
	outgoing.type = TYPE_STREAM;
	outgoing.op = op;
	outgoing.flags = 0;
	outgoing.room = ROOM;
	outgoing.taken = s ? s->taken : 0;
	queues[TX].table[0] = (struct descriptor){ (u64)&outgoing, 44 + length, 0, 0 };
	queue_offer(device, &queues[TX], TX, 0);
	while (!queue_done(&queues[TX], &id, &unused))
		;
}

static struct stream *stream_of(u32 port)
{
	for (int i = 0; i < VSOCK_STREAMS; i++)
		if (streams[i].port == port)
			return &streams[i];
	return 0;
}

void vsock_send(int stream, const u8 *data, u32 length)
{
	while (length > 0) {
		u32 n = length < sizeof outgoing.data ? length : sizeof outgoing.data;
		memcpy(outgoing.data, data, n);
		send(&streams[stream], streams[stream].port, DATA, n);
		data += n;
		length -= n;
	}
}

static void take(struct stream *s, const u8 *data, u32 length)
{
	s->taken += length;
	agent_take(s - streams, data, length);
	send(s, s->port, ROOM_UPDATE, 0);
}

/* A packet without a stream is of one that a transport reset has ended. It is ignored:
 * a RESET could end a new stream, since the host may use the port again. */
static void handle(struct packet *p)
{
	struct stream *s = stream_of(p->from_port);
	if (p->op == REQUEST) {
		if (!s)
			s = stream_of(0);
		if (!s || p->to_port != AGENT_PORT) {
			send(0, p->from_port, RESET, 0);
			return;
		}
		s->port = p->from_port;
		s->taken = 0;
		agent_begin(s - streams);
		send(s, s->port, RESPONSE, 0);
	} else if (p->op == DATA && s) {
		take(s, p->data, p->length);
	} else if (p->op == ROOM_REQUEST && s) {
		send(s, s->port, ROOM_UPDATE, 0);
	} else if (p->op == SHUTDOWN && s) {
		send(s, s->port, RESET, 0);
		s->port = 0;
	} else if (p->op == RESET && s) {
		s->port = 0;
	}
}

/* The device sends one event, the transport reset: all streams have ended, for example
 * because the guest was saved to a file. */
static void listen_for_reset(void)
{
	queues[EVENTS].table[0] = (struct descriptor){ (u64)&event, sizeof event, DESC_DEVICE_WRITES, 0 };
	queue_offer(device, &queues[EVENTS], EVENTS, 0);
}

static void forget_streams(void)
{
	for (int i = 0; i < VSOCK_STREAMS; i++)
		streams[i].port = 0;
}

void vsock_add(u64 base)
{
	device = base;
	our_cid = config32(base, 0);
	device_start(base, 0, queues, QUEUES);
	for (int i = 0; i < BUFFERS; i++) {
		queues[RX].table[i] = (struct descriptor){ (u64)&incoming[i], sizeof incoming[i], DESC_DEVICE_WRITES, 0 };
		queue_offer(device, &queues[RX], RX, i);
	}
	listen_for_reset();
}

void vsock_poll(void)
{
	u32 id, event_id, unused;
	if (!device)
		return;
	int came = queue_done(&queues[RX], &id, &unused);
	/* Read after the RX queue, since a reset precedes the packets that follow it. */
	if (queue_done(&queues[EVENTS], &event_id, &unused)) {
		forget_streams();
		listen_for_reset();
	}
	if (!came)
		return;
	handle(&incoming[id]);
	queue_offer(device, &queues[RX], RX, id);
}

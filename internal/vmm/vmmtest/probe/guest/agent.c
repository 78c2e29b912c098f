/* The agent: the requests of hatchd that this guest can answer. A stream begins
 * with lines. A line that is not of the protocol is answered with "agent: " and
 * the same line; a handshake makes the stream a session.
 *
 * The protocol is internal/guest/wire. A session consists of yamux frames: a
 * header of 12 bytes, and data. Only the host opens streams in it. Each stream
 * has one request, a length and JSON, and then the reply. This is not a JSON
 * parser: it searches for keys as hatchd writes them, without spaces. */
#include "machine.h"

enum { LINE = 1024, REQUEST = 1024, REQUESTS = 8, FRAME_HEADER = 12, LENGTH = 4 };
enum frame_type { FRAME_DATA, FRAME_WINDOW, FRAME_PING };
enum { FLAG_BEGIN = 1, FLAG_TAKEN = 2, FLAG_END = 4, FLAG_BROKEN = 8 };

static struct session {
	int speaks;      /* frames: the handshake is done */
	u32 used;        /* bytes in line, or in header */
	char line[LINE];
	u8 header[FRAME_HEADER];
	u32 left;        /* bytes of the frame's data still to come */
	struct request {
		u32 id; /* of its stream; 0: not in use */
		u32 used;
		char text[LENGTH + REQUEST + 1];
	} requests[REQUESTS], *filling; /* filling: the request that the frame's data belongs to, or 0 */
} sessions[VSOCK_STREAMS];

/* The next message: space for a frame's header, then its data. */
static u8 out[4096];
static u32 end;

static void put(const void *bytes, u32 n)
{
	if (n > sizeof out - end)
		n = sizeof out - end;
	memcpy(out + end, bytes, n);
	end += n;
}

static void put_text(const char *s) { put(s, length(s)); }

static void put_number(u64 n)
{
	char digits[NUMBER];
	put_text(to_digits(digits, n));
}

static void write_big_endian(u8 *to, u32 n)
{
	for (int i = 0; i < 4; i++)
		to[i] = n >> (24 - 8 * i);
}

static u32 read_big_endian(const u8 *from) { return from[0] << 24 | from[1] << 16 | from[2] << 8 | from[3]; }

/* A message, or a chunk of a stream, begins with its length. */
static u32 open_length(void)
{
	end += LENGTH;
	return end;
}

static void close_length(u32 from) { write_big_endian(out + from - LENGTH, end - from); }

/* Sends a frame with the data that was put, if any. n is the length field of the
 * header, whose meaning depends on the type. */
static void send_frame(struct session *s, enum frame_type type, u16 flags, u32 id, u32 n)
{
	out[0] = 0;
	out[1] = type;
	out[2] = flags >> 8;
	out[3] = flags;
	write_big_endian(out + 4, id);
	write_big_endian(out + 8, n);
	vsock_send(s - sessions, out, type == FRAME_DATA ? FRAME_HEADER + n : FRAME_HEADER);
}

static void send_data(struct session *s, struct request *r, int ends)
{
	send_frame(s, FRAME_DATA, 0, r->id, end - FRAME_HEADER);
	if (!ends)
		return;
	/* In a separate frame: a host may ignore the data of a frame that ends the
	 * stream. */
	send_frame(s, FRAME_WINDOW, FLAG_END, r->id, 0);
	r->id = 0;
}

static void put_message(const char *json)
{
	u32 from = open_length();
	put_text(json);
	close_length(from);
}

/* The guest's identity: that of the command line, until hatchd reidentifies a
 * clone. It is only stored, since the guest does not use it. */
static struct self { int is_known; char hostname[65], mac[18], address[44]; } self;

static void read_string(const char *json, const char *key, char *to, u32 size)
{
	const char *at = after(json, key);
	u32 n = 0;
	while (at && *at && *at != '"' && n < size - 1)
		to[n++] = *at++;
	to[n] = 0;
}

static void reidentify(const char *args)
{
	read_string(args, "\"hostname\":\"", self.hostname, sizeof self.hostname);
	read_string(args, "\"mac\":\"", self.mac, sizeof self.mac);
	read_string(args, "\"address\":\"", self.address, sizeof self.address);
	self.is_known = 1;
}

static void say_word(const char *s)
{
	say(" ");
	say_bytes(s, word_length(s));
}

void say_self(void)
{
	say("who:");
	say_word(self.is_known ? self.hostname : argument("hatch.hostname="));
	say_word(self.is_known ? self.address : argument("hatch.ip="));
	say_word(self.is_known ? self.mac : argument("hatch.mac="));
	say("\r\n");
}

static void put_self(void)
{
	u32 from = open_length();
	put_text("{\"ok\":true,\"result\":{\"hostname\":\"");
	put_text(self.hostname);
	put_text("\",\"mac\":\"");
	put_text(self.mac);
	put_text("\",\"address\":\"");
	put_text(self.address);
	put_text("\"}}");
	close_length(from);
}

static void put_status(void)
{
	const char *prefix = self.is_known ? self.address : argument("hatch.ip=");
	u32 from = open_length();
	put_text("{\"ok\":true,\"result\":{\"addresses\":[");
	if (*prefix) {
		put_text("{\"interface\":\"eth0\",\"prefix\":\"");
		put(prefix, word_length(prefix));
		put_text("\"}");
	}
	put_text("],\"cloud_init\":{\"status\":\"absent\"}}}");
	close_length(from);
}

static void put_hello(void)
{
	u32 from = open_length();
	put_text("{\"ok\":true,\"result\":{\"agent\":\"probe\",\"versions\":[1],\"boot_id\":\"");
	put_number(boot_number);
	put_text("\"}}");
	close_length(from);
}

/* The command to run: a shell line, or arguments, which are joined to a line. */
static void read_command(const char *args, char line[LINE])
{
	static const char between[] = "\",\"";
	u32 n = 0;
	const char *shell = after(args, "\"shell\":\""), *at = shell ? shell : after(args, "\"argv\":[\"");
	while (at && *at && n < LINE - 1) {
		if (!shell && starts_with(at, between)) {
			line[n++] = ' ';
			at += length(between);
		} else if (*at == '"') {
			break;
		} else {
			line[n++] = *at++;
		}
	}
	line[n] = 0;
}

/* A process that executes a line like the console: the reply reports its start, and
 * chunks of the stream its output and its exit. */
static void put_process(const char *args)
{
	static char line[LINE], said[2048];
	const char *id = after(args, "\"id\":\"");
	read_command(args, line);
	u32 n = say_into(said, sizeof said - 1, line);
	u32 from = open_length();
	put_text("{\"ok\":true,\"result\":{\"pid\":1,\"started_ns\":0,\"output\":0,\"spec\":{\"id\":\"");
	put(id ? id : "", id ? sizeof "exec_000000000000" - 1 : 0);
	put_text("\"}}}");
	close_length(from);
	if (n) {
		put_text("o");
		from = open_length();
		put(said, n);
		close_length(from);
	}
	put_text("x");
	from = open_length();
	put_text(n ? "{\"code\":0,\"at_ns\":0}" : "{\"code\":127,\"at_ns\":0}");
	close_length(from);
}

static void serve(struct session *s, struct request *r)
{
	const char *found = after(r->text + LENGTH, "\"op\":\""), *op = found ? found : "";
	end = FRAME_HEADER;
	if (starts_with(op, "hello\"")) {
		put_hello();
	} else if (starts_with(op, "status\"")) {
		put_status();
	} else if (starts_with(op, "watch\"")) {
		put_status();
		send_data(s, r, 0); /* the stream stays open: the status never changes */
		return;
	} else if (starts_with(op, "woken\"")) {
		say("woken\r\n");
		put_message("{\"ok\":true,\"result\":null}");
	} else if (starts_with(op, "recast\"")) {
		reidentify(op);
		say("recast\r\n");
		put_self();
	} else if (starts_with(op, "process.exec\"")) {
		put_process(op);
	} else if (starts_with(op, "shutdown\"")) {
		put_message("{\"ok\":true,\"result\":null}");
		send_data(s, r, 1);
		end_machine(after(op, "\"reboot\":true") ? REBOOT : POWER_OFF);
	} else {
		put_message("{\"ok\":false,\"code\":\"unknown_op\",\"error\":\"the probe cannot do this\"}");
	}
	send_data(s, r, 1);
}

static struct request *request_of(struct session *s, u32 id)
{
	for (int i = 0; i < REQUESTS; i++)
		if (s->requests[i].id == id)
			return &s->requests[i];
	return 0;
}

static void take_frame(struct session *s)
{
	u8 type = s->header[1], flags = s->header[3];
	u32 id = read_big_endian(s->header + 4), n = read_big_endian(s->header + 8);
	struct request *r = id ? request_of(s, id) : 0;
	if (type == FRAME_PING && flags & FLAG_BEGIN)
		send_frame(s, FRAME_PING, FLAG_TAKEN, 0, n);
	if (type != FRAME_DATA && type != FRAME_WINDOW)
		return;
	if (flags & FLAG_BEGIN && !r && (r = request_of(s, 0))) {
		r->id = id;
		r->used = 0;
	}
	if (flags & FLAG_BEGIN)
		send_frame(s, FRAME_WINDOW, r ? FLAG_TAKEN : FLAG_BROKEN, id, 0);
	if (flags & FLAG_END && r)
		send_frame(s, FRAME_WINDOW, FLAG_END, id, 0);
	if (flags & (FLAG_END | FLAG_BROKEN) && r)
		r->id = 0;
	s->left = type == FRAME_DATA ? n : 0;
	s->filling = r;
}

static void take_data(struct session *s, u8 byte)
{
	struct request *r = s->filling;
	s->left--;
	if (!r || r->used == LENGTH + REQUEST)
		return; /* a request that is too long is not answered */
	r->text[r->used++] = byte;
	r->text[r->used] = 0;
	if (r->used > LENGTH && r->used == LENGTH + read_big_endian((u8 *)r->text))
		serve(s, r);
}

/* A line of the handshake is the protocol's name and WORD VERSION NONCE. The answer
 * to sync is ack; the answer to start, which begins the session, is go. There is one
 * version. */
static void take_line(struct session *s)
{
	const char *word = after(s->line, "hatch-agent ");
	end = 0;
	if (word && (starts_with(word, "sync ") || starts_with(word, "start "))) {
		s->speaks = starts_with(word, "start ");
		put_text(s->speaks ? "\nhatch-agent go 1 " : "\nhatch-agent ack 1 ");
		put_text(after_word(after_word(word)));
	} else {
		put_text("agent: ");
		put_text(s->line);
	}
	put_text("\n");
	vsock_send(s - sessions, out, end);
}

void agent_begin(int stream) { memset(&sessions[stream], 0, sizeof sessions[stream]); }

void agent_take(int stream, const u8 *data, u32 n)
{
	struct session *s = &sessions[stream];
	for (u32 i = 0; i < n; i++) {
		if (s->left) {
			take_data(s, data[i]);
		} else if (s->speaks) {
			s->header[s->used++] = data[i];
			if (s->used == FRAME_HEADER) {
				s->used = 0;
				take_frame(s);
			}
		} else if (data[i] != '\n') {
			if (s->used < LINE - 1)
				s->line[s->used++] = data[i];
		} else if (s->used) {
			s->line[s->used] = 0;
			s->used = 0;
			take_line(s);
		}
	}
}

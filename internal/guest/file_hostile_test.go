package guest_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/guest/wire"
)

// hostileFiles is an agent that sends the files and changes that the test sets.
type hostileFiles struct {
	*fakeAgent
	wire.FileHandler
	info    wire.FileInfo
	items   []wire.FileInfo
	changes []wire.FileChange
	err     error
}

func (l *hostileFiles) StatFile(context.Context, wire.PathArgs) (wire.FileInfo, error) {
	return l.info, l.err
}

func (l *hostileFiles) ListFiles(_ context.Context, _ wire.PathArgs, began func() error, each func(wire.FileInfo) error) error {
	err := began()
	for _, i := range l.items {
		err = errors.Join(err, each(i))
	}
	return err
}

func (l *hostileFiles) WatchFiles(_ context.Context, _ wire.WatchFilesArgs, began func() error, report func([]wire.FileChange) error) error {
	return errors.Join(began(), report(l.changes))
}

func openHostileFiles(t *testing.T, l *hostileFiles) file.Guest {
	t.Helper()
	l.fakeAgent = newFakeAgent()
	g, _ := connect(t, func(context.Context) (net.Conn, error) {
		host, agent := net.Pipe()
		go func() {
			if server, err := wire.Accept(agent); err == nil {
				_ = server.Run(context.Background(), l)
			}
		}()
		return host, nil
	})
	return g
}

func TestInvalidFilesAreRefused(t *testing.T) {
	l := &hostileFiles{}
	g := openHostileFiles(t, l)
	for name, info := range map[string]wire.FileInfo{
		"size": {Size: -1}, "mode": {Mode: 0o100644}, "owner": {UID: -1}, "group": {GID: 1 << 32},
		"target": {Target: []byte(strings.Repeat("x", 5000))},
	} {
		l.info = info
		_, err := g.StatFile(t.Context(), "/f")
		if !errs.HasCode(err, "agent_unavailable") {
			t.Errorf("%s: %v", name, err)
		}
	}
	l.info = wire.FileInfo{
		Path: []byte("/etc/shadow"), Kind: "hologram", User: []byte("a\x1b[31m" + strings.Repeat("x", 100)), Seconds: 1 << 62, Nanos: 1 << 62,
	}
	info, err := g.StatFile(t.Context(), "/f")
	if err != nil || info.Path != "/f" || info.Kind != file.Other || len(info.User) > 64 || strings.Contains(info.User, "\x1b") {
		t.Errorf("got %+v, %v", info, err)
	}
	if _, err := info.ModifiedAt.UTC().MarshalJSON(); err != nil {
		t.Error(err)
	}
	l.info = wire.FileInfo{Seconds: -1 << 62, Nanos: -1}
	if info, err = g.StatFile(t.Context(), "/f"); err != nil || info.ModifiedAt.UTC().Year() != 1 {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestInvalidListingsAreRefused(t *testing.T) {
	l := &hostileFiles{}
	g := openHostileFiles(t, l)
	for name, names := range map[string][]string{
		"nothing": {""}, "itself": {"."}, "above": {".."}, "a path": {"a/b"}, "a zero byte": {"a\x00"},
		"twice": {"a", "a"}, "out of order": {"b", "a"}, "too long": {strings.Repeat("x", 256)},
	} {
		l.items = nil
		for _, n := range names {
			l.items = append(l.items, wire.FileInfo{Path: []byte(n)})
		}
		seen := 0
		err := g.ListFiles(t.Context(), "/d", func(file.Info) error { seen++; return nil })
		if !errs.HasCode(err, "agent_unavailable") || seen != len(names)-1 {
			t.Errorf("%s: %d were passed on, %v", name, seen, err)
		}
	}
}

func TestInvalidChangesAreRefused(t *testing.T) {
	l := &hostileFiles{}
	g := openHostileFiles(t, l)
	for name, c := range map[string]wire.FileChange{
		"of another": {Kind: wire.ChangeWrite, Path: []byte("/dir2/f")}, "of nothing": {Kind: wire.ChangeWrite},
		"of an unknown kind": {Kind: "explode", Path: []byte("/dir/f")}, "from another": {Kind: wire.ChangeRename, Path: []byte("/dir/f"), From: []byte("/f")},
		"with a zero byte": {Kind: wire.ChangeWrite, Path: []byte("/dir/\x00")}, "too long": {Kind: wire.ChangeWrite, Path: []byte("/dir/" + strings.Repeat("x", 9000))},
	} {
		l.changes = []wire.FileChange{{Kind: wire.ChangeCreate, Path: []byte("/dir/ok")}, c}
		var seen []file.Change
		err := g.WatchFiles(t.Context(), "/dir/", true, func() {}, func(c file.Change) error { seen = append(seen, c); return nil })
		if !errs.HasCode(err, "agent_unavailable") || len(seen) != 1 || seen[0].Path != "/dir/ok" {
			t.Errorf("%s: %+v, %v", name, seen, err)
		}
	}
}

// TestErrorsArePrintable has an agent that sends long messages with escape sequences.
func TestErrorsArePrintable(t *testing.T) {
	l := &hostileFiles{}
	g := openHostileFiles(t, l)
	for code, want := range map[string]errs.Kind{
		wire.CodePermission: errs.Forbidden, wire.CodeInvalidOwner: errs.Invalid, wire.CodeFailed: errs.Forbidden, "made_up": errs.Forbidden,
		wire.CodeUnknownOp: errs.Unsupported, wire.CodeBusy: errs.TooMany, wire.CodeTooLarge: errs.TooLarge,
	} {
		l.err = wire.Refuse(code, "%s", strings.Repeat("\x1b[31m no", 1000))
		_, err := g.StatFile(t.Context(), "/f\xff\x1b")
		var e *errs.Error
		if !errors.As(err, &e) || e.Kind != want || len(e.Message) > 1000 || strings.Contains(e.Message, "\x1b") || !utf8.ValidString(e.Message) || strings.Contains(e.Message, "%!") {
			t.Errorf("%s: %v", code, err)
		}
	}
}

func TestFilesWithoutAnAgent(t *testing.T) {
	a := newFakeAgent()
	g, _ := connect(t, a.dial)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := g.StatFile(ctx, "/f")
	requireCode(t, err, errs.Unavailable, "agent_unavailable")
	defer a.answer(t)()
	_, err = g.StatFile(t.Context(), "/f")
	requireCode(t, err, errs.Unsupported, "agent_too_old")
}

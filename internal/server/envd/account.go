package envd

import (
	"bufio"
	"context"
	"io"
	"path"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/server/connect"
)

// accounts are users of guests. They are read again after a while.
type accounts = boundedMap[accountKey, account]

type accountKey struct{ vmID, name string }

type account struct {
	read time.Time
	home string // absolute
}

// Limits of a guest's users.
const (
	accountAge   = 10 * time.Second
	maxPasswd    = 1 << 20 // bytes that are read
	passwdFields = 7
)

// home returns the home directory of the user that a request works as.
func (e *Envd) home(ctx context.Context, c call) (string, error) {
	name := c.account()
	key := accountKey{c.VMID, name}
	if known, ok := e.accounts.get(key); ok && time.Since(known.read) < accountAge {
		return known.home, nil
	}
	_, content, err := e.cfg.Files.Read(ctx, c.scope, c.VMID, file.ReadSpec{Path: "/etc/passwd", Length: maxPasswd})
	home := ""
	switch {
	case err == nil:
		home = homeOf(content, name)
		_ = content.Close()
	case !errs.HasCode(err, "file_not_found"):
		return "", err
	}
	if home == "" && name == "root" {
		home = "/root"
	}
	if home == "" {
		return "", errUser(name)
	}
	e.accounts.put(key, account{time.Now(), home})
	return home, nil
}

// homeOf returns the home of a user from the text of /etc/passwd, which the guest may have
// changed; "" if it has none. It leaves out lines that are not valid.
func homeOf(text io.Reader, name string) string {
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) == passwdFields && fields[0] == name && path.IsAbs(fields[5]) && len(fields[5]) < file.MaxPath {
			return path.Clean(fields[5])
		}
	}
	return ""
}

// resolve returns the absolute path of one that a request names: it may be relative to
// the user's home, or begin with ~. The user must exist, if the request names one.
func (e *Envd) resolve(ctx context.Context, c call, given string) (string, error) {
	if strings.ContainsRune(given, 0) {
		return "", connect.Errorf(connect.InvalidArgument, "the path has a NUL byte, which no path can have")
	}
	absolute := path.IsAbs(given)
	if absolute && c.user == "" {
		return path.Clean(given), nil
	}
	home, err := e.home(ctx, c)
	if err != nil {
		return "", err
	}
	below, inHome := strings.CutPrefix(given, "~")
	switch {
	case absolute:
		return path.Clean(given), nil
	case inHome && (below == "" || below[0] == '/'):
		return path.Join(home, below), nil
	case c.Dir != "" && c.user == "" && path.Clean(given) == ".": // also ""
		return c.Dir, nil
	default:
		return path.Join(home, given), nil
	}
}

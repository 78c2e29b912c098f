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

// accounts are the users of guests, by VM. They are read again after a while, and when a
// user is missing.
type accounts = boundedMap[string, accountsOf]

type accountsOf struct {
	read  time.Time
	homes map[string]string // by name
}

// Limits of a guest's users.
const (
	accountsAge  = 10 * time.Second
	maxPasswd    = 1 << 20 // bytes that are read
	maxAccounts  = 4096
	passwdFields = 7
)

// home returns the home directory of the user that a request works as.
func (e *Envd) home(ctx context.Context, c call) (string, error) {
	name := c.account()
	known, ok := e.accounts.get(c.VMID)
	if home, found := known.homes[name]; ok && found && time.Since(known.read) < accountsAge {
		return home, nil
	}
	_, content, err := e.cfg.Files.Read(ctx, c.scope, c.VMID, file.ReadSpec{Path: "/etc/passwd", Length: maxPasswd})
	if err != nil && !errs.HasCode(err, "file_not_found") {
		return "", err
	}
	homes := map[string]string{}
	if err == nil {
		homes = readHomes(content)
		_ = content.Close()
	}
	if _, found := homes["root"]; !found {
		homes["root"] = "/root"
	}
	e.accounts.put(c.VMID, accountsOf{time.Now(), homes})
	home, found := homes[name]
	if !found {
		return "", errUser(name)
	}
	return home, nil
}

// readHomes reads the homes of users from the text of /etc/passwd, which the guest may
// have changed. It leaves out lines that are not valid.
func readHomes(text io.Reader) map[string]string {
	homes := map[string]string{}
	lines := bufio.NewScanner(text)
	for lines.Scan() && len(homes) < maxAccounts {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) != passwdFields || fields[0] == "" || !path.IsAbs(fields[5]) {
			continue
		}
		if _, known := homes[fields[0]]; !known {
			homes[fields[0]] = path.Clean(fields[5])
		}
	}
	return homes
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

package main

import (
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// sshLogin is a directory with a key, its certificate for one VM, and the VM's host keys.
type sshLogin struct{ dir string }

func (l sshLogin) key() string         { return filepath.Join(l.dir, "key") }
func (l sshLogin) certificate() string { return filepath.Join(l.dir, "key-cert.pub") }
func (l sshLogin) knownHosts() string  { return filepath.Join(l.dir, "known_hosts") }

// options are those of ssh with which it uses the files, and nothing else.
func (l sshLogin) options() []string {
	return []string{
		`IdentityFile="` + l.key() + `"`,
		`CertificateFile="` + l.certificate() + `"`,
		"IdentitiesOnly=yes",
		"StrictHostKeyChecking=yes",
		`UserKnownHostsFile="` + l.knownHosts() + `"`,
	}
}

// obtain makes a key, has it signed for a login, and writes the files.
func (l sshLogin) obtain(ctx context.Context, server *client.Client, v api.VM, user string, agentForwarding bool) error {
	_, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	public, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		return err
	}
	answer, err := server.Connect(ctx, v.ID, api.Connect{
		PublicKey: string(ssh.MarshalAuthorizedKey(public)), Username: user, AgentForwarding: agentForwarding,
	})
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "hatch "+v.ID)
	if err != nil {
		return err
	}
	var known strings.Builder
	for _, text := range answer.HostKeys {
		key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(text))
		if err != nil {
			return fmt.Errorf("the server sent an invalid host key of %s: %w", v.ID, err)
		}
		fmt.Fprintf(&known, "%s %s", v.ID, ssh.MarshalAuthorizedKey(key))
	}
	if known.Len() == 0 {
		return fmt.Errorf("the server sent no host key of %s", v.ID)
	}
	for path, text := range map[string]string{
		l.key(): string(pem.EncodeToMemory(block)), l.certificate(): answer.Certificate + "\n", l.knownHosts(): known.String(),
	} {
		if err := writeWhole(path, text); err != nil {
			return fmt.Errorf("cannot store an SSH certificate: %w", err)
		}
	}
	return nil
}

// writeWhole writes a file that only this user reads; another process finds the old text
// or the new.
func writeWhole(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// withoutCertificate reports whether a login can do without the certificate that could not
// be got, and how to say so.
func withoutCertificate(err error) (note error, ok bool) {
	refused, is := errors.AsType[*client.Error](err)
	switch {
	case client.HasCode(err, "ssh_certificates_unsupported"):
		return errors.New("the guest accepts no certificates; logging in with the keys of this machine, and without a check of its first host key"), true
	case is && refused.Problem.Status == http.StatusForbidden:
		return errors.New("the API key has no scope exec:write, so that it gets no certificate; logging in with the keys of this machine, and without a check of the first host key"), true
	case is && refused.Problem.Status == http.StatusNotFound, is && refused.Problem.Status == http.StatusMethodNotAllowed:
		return errors.New("hatchd is too old for SSH certificates; logging in with the keys of this machine, and without a check of the first host key"), true
	}
	return nil, false
}

// temporaryLogin returns a login for one run of ssh, whose files end removes.
func temporaryLogin() (l sshLogin, end func(), err error) {
	l.dir, err = os.MkdirTemp("", "hatch-ssh-")
	if err != nil {
		return l, nil, fmt.Errorf("cannot store an SSH certificate: %w", err)
	}
	if strings.ContainsAny(l.dir, "\"\n%") {
		return l, nil, errors.Join(fmt.Errorf("ssh cannot use a file below %q", l.dir), os.Remove(l.dir))
	}
	return l, func() { _ = os.RemoveAll(l.dir) }, nil
}

func (c sshCommands) certificate() *cobra.Command {
	return &cobra.Command{
		Use: "ssh-cert VM", Short: "Get an SSH certificate for a VM, for other programs", Args: oneArg("VM"),
		Long: `Get an SSH certificate for a VM, valid for five minutes, with a key and the VM's
host keys, and print the directory of the three files: key, key-cert.pub and
known_hosts. hatch ssh does this by itself; the configuration that hatch
ssh-config prints runs this command at each login. hatch rm deletes the files.`,
		Example:           "  hatch ssh-cert web",
		ValidArgsFunction: vmKind.complete(c.connection),
		RunE: func(cmd *cobra.Command, args []string) error {
			server, v, err := c.openVM(cmd.Context(), args[0])
			if err != nil {
				return fmt.Errorf("cannot get an SSH certificate for %s: %w", args[0], err)
			}
			dir, err := knownHosts{c.env}.login(v.ID)
			if err == nil {
				err = os.MkdirAll(dir, 0o700)
			}
			if err == nil {
				err = sshLogin{dir}.obtain(cmd.Context(), server, v, "", false)
			}
			if err != nil {
				return fmt.Errorf("cannot get an SSH certificate for %s: %w", displayName(v), err)
			}
			_, err = fmt.Fprintln(c.out, dir)
			return err
		},
	}
}

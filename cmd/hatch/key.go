package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

var keyKind = kind[api.Key]{
	noun: "key", ls: "hatch key ls",
	list: (*client.Client).ListKeys,
	name: func(k api.Key) named { return named{k.ID, k.Name} },
}

// keyCommands are hatch key.
type keyCommands struct {
	*printer
	*connection
}

func (c keyCommands) command() *cobra.Command {
	common := nounCommands[api.Key]{
		printer: c.printer, connection: c.connection, kind: keyKind,
		remove: (*client.Client).DeleteKey, table: c.table,
	}
	var force bool
	var user string
	common.list = func(server *client.Client, ctx context.Context) ([]api.Key, error) {
		if user != "" {
			return server.ListKeysOf(ctx, user)
		}
		return server.ListKeys(ctx)
	}
	common.check = func(k api.Key) error {
		if k.Current && !force {
			return hint(errors.New("it is the key that this command uses"), "create another one first, or hatch key rm --force %s", k.ID)
		}
		return nil
	}
	rm := common.rmCommand()
	rm.Long = "Delete API keys. The key that this command uses is deleted with --force only."
	rm.Flags().BoolVarP(&force, "force", "f", false, "delete the key that this command uses, too")
	rm.Flags().StringVar(&user, "user", "", "`user` whose keys they are, as an admin")
	ls := common.lsCommand("List API keys, without their secrets")
	ls.Flags().StringVar(&user, "user", "", "`user` whose keys they are, as an admin")
	return noun("key", "Manage API keys", c.createCommand(), ls, rm)
}

func (c keyCommands) table(keys []api.Key, wide bool) table {
	t := table{head: []string{"ID", "NAME", "PREFIX", "SCOPES", "EXPIRES", "LAST USED", "AGE"}}
	if wide {
		t.head = append(t.head, "USER", "FROM", "IN USE HERE", "NOTE")
	}
	for _, k := range keys {
		used, expires := "never", "never"
		if k.LastUsedAt != nil {
			used = c.age(*k.LastUsedAt) + " ago"
		}
		if k.ExpiresAt != nil {
			expires = k.ExpiresAt.String()
		}
		cells := []string{k.ID, k.Name, k.Prefix, briefScopes(k.Scopes), expires, used, c.age(k.CreatedAt)}
		if wide {
			cells = append(cells, k.UserID, strings.Join(k.AllowedCIDRs, ","), yesNo(k.Current), k.Note)
		}
		t.row(cells...)
	}
	return t
}

// shownScopes is how many scopes a table shows.
const shownScopes = 4

func briefScopes(scopes []string) string {
	if len(scopes) > shownScopes {
		return fmt.Sprintf("%s and %d more", strings.Join(scopes[:shownScopes-1], ","), len(scopes)-shownScopes+1)
	}
	return strings.Join(scopes, ",")
}

// keyFlags are those of key create.
type keyFlags struct {
	scopes, from        []string
	expires, note, user string
	e2b                 bool
}

func (f *keyFlags) request(cmd *cobra.Command, name string) (api.CreateKey, error) {
	body := api.CreateKey{Name: name, Note: f.note, AllowedCIDRs: f.from, UserID: f.user, E2B: f.e2b}
	for _, scope := range f.scopes {
		if scope == "admin" || strings.Contains(scope, ":") {
			body.Scopes = append(body.Scopes, scope)
		} else {
			body.Scopes = append(body.Scopes, scope+":read", scope+":write")
		}
	}
	if f.expires == "" {
		return body, nil
	}
	at, err := time.Parse(time.RFC3339, f.expires)
	if err != nil {
		life, inDays := strings.CutSuffix(f.expires, "d")
		if inDays {
			days, parseErr := strconv.Atoi(life)
			at, err = time.Now().AddDate(0, 0, days), parseErr
		} else {
			d, parseErr := time.ParseDuration(life)
			at, err = time.Now().Add(d), parseErr
		}
	}
	if err != nil {
		return body, usage(cmd, "--expires: %q is neither a time such as 2027-01-31T12:00:00Z nor a duration such as 12h or 90d", f.expires)
	}
	body.ExpiresAt = &api.Time{Time: at}
	return body, nil
}

func (c keyCommands) createCommand() *cobra.Command {
	f := &keyFlags{}
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Create an API key and print its secret, which is shown only once", Args: oneArg("name"),
		Long: "Create an API key and print its secret, which is shown only once. Without flags the key can do what the key that hatch uses can.\n" +
			"A key can do no more, no longer and from no other networks than the one that it is made with.",
		Example: "  (umask 077; hatch key create ci > ci.key)\n  hatch key create deploy --scope vms --scope exec:write --expires 90d --from 192.0.2.0/24",
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := f.request(cmd, args[0])
			if err != nil {
				return err
			}
			server, err := c.client()
			if err != nil {
				return err
			}
			key, err := server.CreateKey(cmd.Context(), body)
			if err != nil {
				return fmt.Errorf("cannot create the key: %w", err)
			}
			return c.printOne(key, func() {
				fmt.Fprintf(c.err, "%s; its secret is not shown again\n", clean(key.ID))
				fmt.Fprintln(c.out, key.Secret)
			})
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.scopes, "scope", nil, "what it can be used for: `NOUN`:read, NOUN:write, NOUN for both, or admin (repeatable)")
	flags.StringVar(&f.expires, "expires", "", "refuse it after this `time`: as 12h or 90d, or as 2027-01-31T12:00:00Z")
	flags.StringVar(&f.note, "note", "", "anything about it, such as where it is used")
	flags.StringArrayVar(&f.from, "from", nil, "`network` of clients that may use it, as 192.0.2.0/24 (repeatable)")
	flags.StringVar(&f.user, "user", "", "`user` that the key is for, as an admin")
	flags.BoolVar(&f.e2b, "e2b", false, "make it of the form that the client libraries of E2B require")
	return cmd
}

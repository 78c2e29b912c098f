package e2b

import (
	"cmp"
	"context"
	"crypto/sha256"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/template"
)

// baseName is the template that clients name if their user names none. It is the default
// image unless a template or an image has the name.
const baseName = "base"

// origin is what a sandbox is made from; at most one of the first three is set.
type origin struct {
	templateID, imageID, snapshotID string

	id, alias string // as clients see them
}

// plainName returns a name without a namespace, which must be the user's, and a tag, of
// which there is only the default.
func plainName(ref, user string) (string, error) {
	name, tag, tagged := strings.Cut(ref, ":")
	if space, rest, ok := strings.Cut(name, "/"); ok && space == user {
		name = rest
	}
	if name == "" || strings.Contains(name, "/") || tagged && tag != "default" && tag != "latest" {
		return "", errNoTemplate(ref)
	}
	return name, nil
}

func errNoTemplate(ref string) error {
	return errs.New(errs.NotFound, "template_not_found", "template '%s' not found", errs.Brief(ref))
}

// catalog is what clients take for templates: templates, images and snapshots of Hatch's.
type catalog struct {
	templates Templates
	images    Images
	snapshots Snapshots
	defaults  machine.Spec // sizes, where a template says nothing
}

// find finds what a reference to a template means, by id or name.
func (g catalog) find(ctx context.Context, caller access.Principal, ref string) (origin, error) {
	if ref == "" {
		return origin{}, errs.InvalidField("templateID", "is missing; want the id or the name of a template")
	}
	name, err := plainName(ref, caller.UserName)
	if err != nil {
		return origin{}, err
	}
	for _, find := range []func() (origin, error){
		func() (origin, error) {
			t, err := g.templates.Get(ctx, caller.Scope(), name)
			return origin{templateID: t.ID, id: t.ID, alias: t.Name}, err
		},
		func() (origin, error) {
			i, err := g.images.Get(ctx, caller.Scope(), name)
			return origin{imageID: i.ID, id: i.ID, alias: i.Name}, err
		},
		func() (origin, error) {
			s, err := g.snapshots.Get(ctx, caller.Scope(), name)
			return origin{snapshotID: s.ID, id: s.ID, alias: s.Name}, err
		},
		func() (origin, error) {
			if name != baseName {
				return origin{}, errNoTemplate(ref)
			}
			i, err := g.images.Get(ctx, caller.Scope(), image.DefaultID)
			return origin{imageID: i.ID, id: baseName, alias: baseName}, err
		},
	} {
		from, err := find()
		if err == nil || !errs.Is(err, errs.NotFound) {
			return from, err
		}
	}
	return origin{}, errNoTemplate(ref)
}

// shownTemplate is a template, an image or a snapshot as clients see it.
type shownTemplate struct {
	ID           string    `json:"templateID"`
	BuildID      string    `json:"buildID"`
	CPUs         int       `json:"cpuCount"`
	MemoryMB     int       `json:"memoryMB"`
	DiskMB       int       `json:"diskSizeMB"`
	Public       bool      `json:"public"`
	Aliases      []string  `json:"aliases"`
	Names        []string  `json:"names"`
	CreatedAt    time.Time `json:"createdAt"`
	UpdatedAt    time.Time `json:"updatedAt"`
	CreatedBy    *string   `json:"createdBy"`
	LastSpawned  *string   `json:"lastSpawnedAt"`
	SpawnCount   int       `json:"spawnCount"`
	BuildCount   int       `json:"buildCount"`
	AgentVersion string    `json:"envdVersion"`
	BuildStatus  string    `json:"buildStatus"`
	Builds       []build   `json:"builds,omitempty"`
}

// build is the one build that each template has.
type build struct {
	ID         string    `json:"buildID"`
	Status     string    `json:"status"`
	CreatedAt  time.Time `json:"createdAt"`
	UpdatedAt  time.Time `json:"updatedAt"`
	FinishedAt time.Time `json:"finishedAt"`
	CPUs       int       `json:"cpuCount"`
	MemoryMB   int       `json:"memoryMB"`
}

const ready = "ready"

// showTemplate shows what VMs of these values are made from.
func (g catalog) showTemplate(id, name string, public bool, spec machine.Spec, made, changed time.Time) shownTemplate {
	names := []string{}
	if name != "" {
		names = append(names, name)
	}
	return shownTemplate{
		ID: id, BuildID: buildID(id), CPUs: spec.VCPUs, MemoryMB: spec.MemMiB, DiskMB: spec.DiskMiB, Public: public,
		Aliases: names, Names: names, CreatedAt: made.UTC(), UpdatedAt: changed.UTC(), BuildCount: 1, AgentVersion: agentVersion, BuildStatus: ready,
	}
}

// buildID is a UUID made of a template's id: clients require one.
func buildID(id string) string {
	b := sha256.Sum256([]byte("hatch build\x00" + id))
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80 // version 8, of RFC 9562
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func (g catalog) ofTemplate(t template.Template) shownTemplate {
	return g.showTemplate(t.ID, t.Name, t.Sharing.Visibility == access.Public, machine.Merge(g.defaults, t.Overrides), t.CreatedAt, t.UpdatedAt)
}

func (g catalog) ofImage(i image.Image) shownTemplate {
	return g.showTemplate(i.ID, i.Name, i.Sharing.Visibility == access.Public, g.defaults, i.CreatedAt, i.CreatedAt)
}

func (g catalog) ofSnapshot(s snapshot.Snapshot) shownTemplate {
	return g.showTemplate(s.ID, s.Name, false, s.VM.Spec, s.CreatedAt, s.CreatedAt)
}

// listTemplates returns templates and images, newest first.
func (d *Door) listTemplates(c *call) error {
	templates, err := d.cfg.Templates.List(c, c.scope())
	if err != nil {
		return err
	}
	images, err := d.cfg.Images.List(c, c.scope())
	if err != nil {
		return err
	}
	all := []shownTemplate{}
	for _, t := range templates {
		all = append(all, d.catalog.ofTemplate(t))
	}
	for _, i := range images {
		all = append(all, d.catalog.ofImage(i))
	}
	at := func(t shownTemplate) position { return position{t.CreatedAt.Truncate(time.Microsecond), t.ID} }
	slices.SortFunc(all, func(a, b shownTemplate) int { return at(b).compare(at(a)) })
	if c.r.URL.Path == "/v2/templates" { // the first route has no pages
		if all, err = pageOf(c, all, false, at); err != nil {
			return err
		}
	}
	return c.answer(http.StatusOK, all)
}

func (d *Door) getTemplate(c *call) error {
	from, err := d.catalog.find(c, c.caller, c.params["id"])
	if err != nil {
		return err
	}
	var out shownTemplate
	switch {
	case from.templateID != "":
		t, getErr := d.cfg.Templates.Get(c, c.scope(), from.templateID)
		out, err = d.catalog.ofTemplate(t), getErr
	case from.snapshotID != "":
		s, getErr := d.cfg.Snapshots.Get(c, c.scope(), from.snapshotID)
		out, err = d.catalog.ofSnapshot(s), getErr
	default:
		i, getErr := d.cfg.Images.Get(c, c.scope(), cmp.Or(from.imageID, image.DefaultID))
		out, err = d.catalog.ofImage(i), getErr
	}
	if errs.Is(err, errs.NotFound) {
		return errNoTemplate(c.params["id"])
	}
	if err != nil {
		return err
	}
	out.Builds = []build{{
		ID: out.BuildID, Status: ready, CreatedAt: out.CreatedAt, UpdatedAt: out.UpdatedAt, FinishedAt: out.UpdatedAt, CPUs: out.CPUs, MemoryMB: out.MemoryMB,
	}}
	return c.answer(http.StatusOK, out)
}

// alias tells whether there is a template of a name.
func (d *Door) alias(c *call) error {
	from, err := d.catalog.find(c, c.caller, c.params["alias"])
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, struct {
		ID     string `json:"templateID"`
		Public bool   `json:"public"`
	}{from.id, false})
}

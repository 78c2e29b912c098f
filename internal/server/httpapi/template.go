package httpapi

import (
	"cmp"
	"context"
	"encoding/json"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	hostroute "github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/template"
)

// Templates manages templates. [template.Service] implements it.
type Templates interface {
	// Create stores t, whose ID, OwnerID and times it fills in.
	Create(ctx context.Context, owner string, t template.Template) (template.Template, error)
	Template(ctx context.Context, scope access.Scope, id string) (template.Template, error)
	List(ctx context.Context, scope access.Scope) ([]template.Template, error)
	// Update and Delete change nothing if their function returns an error.
	Update(ctx context.Context, scope access.Scope, id string, change func(*template.Template) error) (template.Template, error)
	Delete(ctx context.Context, scope access.Scope, id string, check func(template.Template) error) error
}

type templateHandlers struct {
	*door
	templates Templates
	users     *userHandlers
	leading   Routes
}

type createTemplateInput struct {
	Body api.CreateTemplate
}

func (h *templateHandlers) create(ctx context.Context, in *createTemplateInput) (*created[api.Template], error) {
	given, err := h.overrides(ctx, in.Body.MachineSpec, nil)
	if err != nil {
		return nil, err
	}
	routes, err := h.routesFor(ctx, in.Body.Routes)
	if err != nil {
		return nil, err
	}
	t, err := h.templates.Create(ctx, owner(ctx), template.Template{Name: in.Body.Name, Overrides: given, Routes: routes})
	if err != nil {
		return nil, err
	}
	return &created[api.Template]{Location: "/templates/" + t.ID, Body: wholeTemplate(ctx, t)}, nil
}

// routesFor decodes the routes of a template, which a key with the right to make routes may
// give it: what other keys create from it has them, too.
func (h *templateHandlers) routesFor(ctx context.Context, given []api.CreateRoute) ([]hostroute.Spec, error) {
	if len(given) > 0 {
		if err := checkRight(ctx, access.Write(access.Routes)); err != nil {
			return nil, err
		}
	}
	return routeSpecs(h.leading, given)
}

func (h *templateHandlers) list(ctx context.Context, in *PageInput) (*paged[api.Template], error) {
	templates, err := h.templates.List(ctx, manager(ctx))
	if err != nil {
		return nil, err
	}
	return list[template.Template, api.Template]{
		all: templates, path: "/templates",
		at: func(t template.Template) position { return position{t.CreatedAt, t.ID} },
		show: func(t template.Template) api.Template {
			t.UserData = nil // it may hold secrets
			return wholeTemplate(ctx, t)
		},
	}.page(*in)
}

func (h *templateHandlers) get(ctx context.Context, in *ConditionalIDPath) (*tagged[api.Template], error) {
	t, err := h.templates.Template(ctx, manager(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return withTag(in.Conditions, wholeTemplate(ctx, t), t.UpdatedAt)
}

func (h *templateHandlers) update(ctx context.Context, in *patchInput) (*tagged[api.Template], error) {
	var given struct {
		UserData *json.RawMessage `json:"user_data"`
		Routes   json.RawMessage  `json:"routes"`
	}
	_ = json.Unmarshal(in.RawBody, &given) // patched refuses what cannot be read
	t, err := h.templates.Update(ctx, manager(ctx), in.ID, func(t *template.Template) error {
		shown := wholeTemplate(ctx, *t)
		if err := in.allowObject(shown, t.UpdatedAt); err != nil {
			return err
		}
		if given.UserData != nil {
			shown.UserDataEncoding = "" // of the old user data
		}
		after, err := patched[api.UpdateTemplate](h.door, shown, in.RawBody, templateFields, nil)
		if err == nil {
			t.Name = after.Name
			t.Overrides, err = h.overrides(ctx, after.MachineSpec, nil)
		}
		if err == nil {
			t.Sharing, err = h.users.sharing(ctx, t.Sharing, after.Visibility, after.SharedWith)
		}
		if err == nil && given.Routes != nil { // those that are shown have no passwords
			t.Routes, err = h.routesFor(ctx, after.Routes)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return withTag(Conditions{}, wholeTemplate(ctx, t), t.UpdatedAt)
}

// templateFields are the fields of a template that can be changed.
var templateFields = []string{
	"name", "image_id", "description", "hostname", "vcpu_count", "mem_mib", "disk_mib", "boot_args", "enable_network",
	"user_data", "user_data_encoding", "labels", "ssh_authorized_keys", "rate_limits", "routes", "ports", "implicit_routes", "idle", "ttl_seconds", "expire_action", "visibility", "shared_with",
}

func (h *templateHandlers) delete(ctx context.Context, in *ConditionalIDPath) (*answer[api.Deleted], error) {
	err := h.templates.Delete(ctx, manager(ctx), in.ID, func(t template.Template) error { return in.allowObject(wholeTemplate(ctx, t), t.UpdatedAt) })
	if err != nil {
		return nil, err
	}
	return deleted(), nil
}

func wholeTemplate(ctx context.Context, t template.Template) api.Template {
	out := api.Template{
		ID:             t.ID,
		CreateTemplate: api.CreateTemplate{Name: t.Name, MachineSpec: shownOverrides(t.Overrides)},
		OwnerID:        t.OwnerID,
		Visibility:     string(cmp.Or(t.Sharing.Visibility, access.Private)), SharedWith: shownWith(ctx, t.OwnerID, t.Sharing),
		CreatedAt: utc(t.CreatedAt), UpdatedAt: utc(t.UpdatedAt),
	}
	for _, r := range t.Routes {
		out.Routes = append(out.Routes, shownSpec(r))
	}
	return out
}

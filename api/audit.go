package api

// AuditRecord says who did what to which object, from where, and with which outcome.
type AuditRecord struct {
	ID        string `json:"id" example:"aud_1772798400000000"`
	At        Time   `json:"at" doc:"When it had ended."`
	UserID    string `json:"user_id,omitempty" doc:"Who. Absent for a connection to a port, and for a caller that has not authenticated."`
	UserName  string `json:"user_name,omitempty"`
	KeyID     string `json:"key_id,omitempty"`
	KeyName   string `json:"key_name,omitempty"`
	Address   string `json:"address,omitempty" doc:"IP address of the client."`
	Operation string `json:"operation" example:"create-vm" doc:"The operation's ID in this description, or ssh-session, port-session, authenticate, or audit-records, which stands for records that were lost."`
	Noun      string `json:"noun,omitempty" example:"vm" doc:"Kind of the object."`
	Object    string `json:"object,omitempty" example:"vm_abc123def456" doc:"ID of the object, or the name that the request gave."`
	Made      string `json:"made,omitempty" example:"rt_abc123def456" doc:"ID of what a request about the object has made, such as a route to a VM; of several VMs the first."`
	Outcome   string `json:"outcome" example:"ok" doc:"ok, refused or failed."`
	Code      string `json:"code,omitempty" doc:"Code of the error."`
	RequestID string `json:"request_id,omitempty"`
	TookMS    int64  `json:"took_ms" doc:"How long it took; of a session or a stream, its length."`
	Bytes     int64  `json:"bytes,omitempty" doc:"What a connection to a port carried, both ways."`
	Count     int64  `json:"count" doc:"How many the record stands for; more than 1 for connections and wrong keys that came too often to be recorded one by one."`
}

-- The newest rows, and events page by page.
CREATE INDEX audit_by_time ON audit (at DESC, writer, sequence DESC);

# The socket load balancer: which network namespaces take part.

load helpers
load lb

setup_file() {
  lb_suite || return 0
  lb_pod second
  lb_services "$(lb_service web "{\"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")" \
    "$(lb_service dns "{\"protocol\": \"UDP\", \"clusterIps\": [\"10.96.0.1\"], \"backends\": $(lb_backends 127.0.0.2)}")"
}

# translated POD...: which of the pods' connections are translated, TCP and UDP, connected and not.
translated() {
  local pod
  for pod in pod second; do
    lab_sockets "node1/$pod" "$pod" <<'PY'
serve("127.0.0.2")
errors = [
    errno_of(connect, SOCK_STREAM, "10.96.0.1"),
    errno_of(connect, SOCK_DGRAM, "10.96.0.1"),
    errno_of(ask, new(SOCK_DGRAM, AF_INET), "10.96.0.1"),
]
# There is no route in these pods, so what is not translated fails at once.
equal(errors in ([None] * 3, ["ENETUNREACH"] * 3), True, errors)
print(*([sys.argv[1]] if errors[0] is None else []), end=" ")
PY
  done
}

@test "by default all network namespaces take part" {
  assert_equal "$(translated)" 'pod second '
}

@test "with the scope only, the registered network namespaces take part" {
  lab_reload node1 --scope only
  assert_equal "$(translated)" '  '
  lab_lb node1 register /run/netns/pod
  assert_equal "$(translated)" 'pod  '
  lab_lb node1 register /run/netns/second
  lab_lb node1 unregister /run/netns/pod
  assert_equal "$(translated)" ' second '
  lab_lb node1 unregister /run/netns/second
}

@test "with the scope all-but, the registered network namespaces do not take part" {
  lab_reload node1 --scope all-but
  assert_equal "$(translated)" 'pod second '
  lab_lb node1 register /run/netns/pod
  assert_equal "$(translated)" ' second '
  lab_lb node1 unregister /run/netns/pod
  assert_equal "$(translated)" 'pod second '
}

@test "loading without --scope keeps the scope, and all makes everybody take part again" {
  lab_reload node1 --scope only
  lab_reload node1
  assert_equal "$(translated)" '  '
  lab_reload node1 --scope all
  assert_equal "$(translated)" 'pod second '
}

@test "unregistering what is not registered succeeds, and a path that is no network namespace is an error" {
  lab_lb node1 unregister /run/netns/pod
  expect 1 lab_lb node1 register /run/netns/nobody
  assert_contains "$stderr" /run/netns/nobody
  expect 1 lab_lb node1 register /etc/hostname
}

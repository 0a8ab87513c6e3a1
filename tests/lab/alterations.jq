# What somebody else could do to each object that an ADD made: WHERE|COMMAND for each way to remove or to alter it, from the
# operations in an attachment's document (`applied`). --arg pod: the pod.

def ip(address): "ip " + if address | contains(":") then "-6 " else "" end;
def of(value; words): if value then " \(words) \(value)" else "" end;
def mac: "02:00:00:00:00:99";

def route_key: of(.table; "table") + of(.metric; "metric");
def route_way: of(.gateway; "via") + of(.dev; "dev") + of(.source; "src") + of(.protocol; "proto")
  + if .onlink then " onlink" else "" end;
def rule_key: of(.from; "from") + if .fwmark then " fwmark \(.fwmark)/\(.fwmask // 4294967295)" else "" end;
def rule: if .family == "ipv6" then "ip -6 rule" else "ip rule" end;

def link(name): "ip link set \(name) down", "ip link set \(name) mtu 1400", "ip link set \(name) address \(mac)",
  "ip link delete \(name)";
def table_of(chains): "nft delete table inet underpass",
  (chains[] | "nft flush chain inet underpass \(.)", "nft add rule inet underpass \(.) counter");

def altered:
  if .veth then
    .veth | ("node1|" + (link(.name), "ip link set \(.name) alias mine", "ip link set \(.name) group 0")),
      ("node1/\($pod)|" + link(.peer))
  else
    (if .netns == "node" then "node1|" else "node1/\($pod)|" end) + (
      if .address then
        .address | ip(.address) + "address delete \(.address) dev \(.dev)"
      elif .neighbour then
        .neighbour | ip(.address) + "neighbour " + (
          "delete \(.address) dev \(.dev)",
          "change \(.address) dev \(.dev) lladdr \(mac) nud permanent",
          "change \(.address) dev \(.dev) nud stale")
      elif .route then
        .route | ip(.destination) + "route " + (
          "delete \(.destination)\(route_key)",
          "change \(.destination) dev lo\(route_key)")
      elif .rule then
        .rule | (rule + " delete pref \(.priority)\(rule_key) lookup \(.table)") as $delete
          | $delete, "\($delete); \(rule) add pref \(.priority)\(rule_key) lookup 254 proto 85"
      elif .marks then table_of(["prerouting", "output"])
      elif .transit then table_of([if .transit.masquerade then "postrouting" else "prerouting" end])
      elif .sysctl then
        .sysctl | (.path | gsub("/"; ".")) + if .value == "0" then "=1" else "=0" end | "sysctl -qw \(.)"
      else error("of no known kind: \(.)") end)
  end;

# What ADD found otherwise, or removed: somebody puts it back.
def back:
  "node1/\($pod)|" + (
    if .sysctl then .sysctl | "sysctl -qw \(.path | gsub("/"; "."))=\(.value)"
    elif .queueLength then .queueLength | "ip link set \(.dev) txqueuelen \(.packets)"
    elif .linkAddress then .linkAddress | "ip link set \(.dev) address \(.mac)"
    elif .route then .route | ip(.destination) + "route append \(.destination)\(route_key)\(route_way)"
    else error("of no known kind: \(.)") end);

.applied[] | (.add // empty | altered), (.replace.from // empty | back), (.delete // empty | back)

package mesh.apps.zookeeper;

import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import mesh.apps.Console;
import mesh.apps.Directory;
import mesh.apps.Flags;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.state.ConnectionState;
import org.apache.curator.retry.ExponentialBackoffRetry;
import org.apache.curator.x.discovery.ServiceCache;
import org.apache.curator.x.discovery.ServiceDiscovery;
import org.apache.curator.x.discovery.ServiceDiscoveryBuilder;
import org.apache.curator.x.discovery.ServiceInstance;
import org.apache.curator.x.discovery.details.InstanceSerializer;
import org.apache.curator.x.discovery.details.JsonInstanceSerializer;
import org.apache.curator.x.discovery.details.ServiceCacheListener;
import org.apache.zookeeper.CreateMode;
import org.springframework.cloud.zookeeper.discovery.ZookeeperInstance;

/** ZooKeeper through Curator's service discovery, as Spring Cloud uses it: {@code --servers, --session} (milliseconds). */
public final class ZooKeeperDirectory extends Directory {
    private static final String ROOT = "/services";

    private final InstanceSerializer<ZookeeperInstance> serializer = new JsonInstanceSerializer<>(ZookeeperInstance.class);
    private final CuratorFramework client;
    private final ServiceDiscovery<ZookeeperInstance> discovery;
    private final Set<String> registered = new HashSet<>();

    private ZooKeeperDirectory(Flags flags) throws Exception {
        client = CuratorFrameworkFactory.newClient(
                flags.require("servers"), flags.number("session", 20_000), 10_000, new ExponentialBackoffRetry(100, 29, 1000));
        client.start();
        discovery = ServiceDiscoveryBuilder.builder(ZookeeperInstance.class)
                .client(client)
                .basePath(ROOT)
                .serializer(serializer)
                .build();
        discovery.start();
    }

    @Override
    protected void register(String name, String host, int port, Map<String, String> metadata) throws Exception {
        String id = host + ":" + port;
        ServiceInstance<ZookeeperInstance> instance = ServiceInstance.<ZookeeperInstance>builder()
                .name(name)
                .id(id)
                .address(host)
                .port(port)
                .payload(new ZookeeperInstance(id, name, metadata))
                .build();
        byte[] data = serializer.serialize(instance);
        if (registered.add(path(name, id))) {
            // Curator's own registration deletes the node and makes it anew after every lost connection.
            client.create().creatingParentsIfNeeded().withMode(CreateMode.EPHEMERAL).forPath(path(name, id), data);
        } else {
            client.setData().forPath(path(name, id), data);
        }
    }

    @Override
    protected void deregister(String name, String host, int port) throws Exception {
        String path = path(name, host + ":" + port);
        registered.remove(path);
        client.delete().forPath(path);
    }

    private static String path(String name, String id) {
        return ROOT + "/" + name + "/" + id;
    }

    @Override
    protected void watch(String name) throws Exception {
        ServiceCache<ZookeeperInstance> cache =
                discovery.serviceCacheBuilder().name(name).build();
        cache.addListener(new ServiceCacheListener() {
            @Override
            public void cacheChanged() {
                say(name, cache);
            }

            @Override
            public void stateChanged(CuratorFramework client, ConnectionState state) {}
        });
        cache.start();
        say(name, cache);
    }

    private void say(String name, ServiceCache<ZookeeperInstance> cache) {
        List<String> entries = new ArrayList<>();
        for (ServiceInstance<ZookeeperInstance> instance : cache.getInstances()) {
            entries.add(entry(instance.getAddress(), instance.getPort(), instance.getPayload().getMetadata()));
        }
        seen(name, entries);
    }

    public static void main(String[] args) throws Exception {
        Console console = new Console();
        new ZooKeeperDirectory(new Flags(args)).serve(console);
    }
}

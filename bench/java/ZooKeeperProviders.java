import java.util.List;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Semaphore;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.dubbo.common.URL;
import org.apache.zookeeper.CreateMode;
import org.apache.zookeeper.KeeperException.Code;
import org.apache.zookeeper.ZooDefs;
import org.apache.zookeeper.ZooKeeper;

/** Writes and reads Dubbo's providers in ZooKeeper with the stock client, as many requests at a time as it takes. */
public final class ZooKeeperProviders {
    private static final String ROOT = "/dubbo";

    public static void main(String[] args) throws Exception {
        long start = System.nanoTime();
        CountDownLatch connected = new CountDownLatch(1);
        ZooKeeper zk = new ZooKeeper(args[1], 60_000, event -> {
            if (event.getState() == org.apache.zookeeper.Watcher.Event.KeeperState.SyncConnected) {
                connected.countDown();
            }
        });
        connected.await();
        switch (args[0]) {
            case "write" -> write(zk, Integer.parseInt(args[2]), Integer.parseInt(args[3]));
            case "read" -> read(zk, start);
            default -> throw new IllegalArgumentException(args[0]);
        }
        zk.close();
    }

    private static void write(ZooKeeper zk, int services, int instances) throws Exception {
        Semaphore room = new Semaphore(1000);
        create(zk, room, ROOT);
        drain(room);
        for (int n = 0; n < services; n++) {
            create(zk, room, ROOT + "/" + name(n));
        }
        drain(room);
        for (int n = 0; n < services; n++) {
            create(zk, room, ROOT + "/" + name(n) + "/providers");
        }
        drain(room);
        for (int n = 0; n < instances; n++) {
            String service = name(n % services);
            String url = "dubbo://10." + (n >> 16 & 255) + "." + (n >> 8 & 255) + "." + (n & 255) + ":20880/" + service
                + "?application=app-" + n % services % 997 + "-provider&deprecated=false&dubbo=2.0.2&dynamic=true"
                + "&generic=false&interface=" + service + "&methods=find,place,cancel&pid=" + (1000 + n % 30_000)
                + "&release=3.2.14&revision=1.0.0&serialization=hessian2&side=provider&timestamp="
                + (1_764_000_000_000L + n) + "&version=1.0.0&zone=cn-hangzhou-" + (char) ('g' + n % 3);
            create(zk, room, ROOT + "/" + service + "/providers/" + URL.encode(url));
        }
        drain(room);
        System.out.println("WRITTEN");
    }

    private static String name(int n) {
        return "com.company.order.api.Facade" + n + "Service";
    }

    private static void create(ZooKeeper zk, Semaphore room, String path) throws InterruptedException {
        room.acquire();
        zk.create(path, new byte[0], ZooDefs.Ids.OPEN_ACL_UNSAFE, CreateMode.PERSISTENT, (code, p, context, name) -> {
            room.release();
            if (code != Code.OK.intValue() && code != Code.NODEEXISTS.intValue()) {
                System.err.println(Code.get(code) + " " + p);
            }
        }, null);
    }

    private static void drain(Semaphore room) throws InterruptedException {
        room.acquire(1000);
        room.release(1000);
    }

    private static void read(ZooKeeper zk, long start) throws Exception {
        Map<String, List<URL>> known = new ConcurrentHashMap<>();
        AtomicInteger instances = new AtomicInteger();
        List<String> services = zk.getChildren(ROOT, event -> { });
        CountDownLatch left = new CountDownLatch(services.size());
        for (String service : services) {
            zk.getChildren(ROOT + "/" + service + "/providers", event -> { }, (code, path, context, children) -> {
                List<URL> urls = children.stream().map(child -> URL.valueOf(URL.decode(child))).toList();
                known.put(service, urls);
                instances.addAndGet(urls.size());
                left.countDown();
            }, null);
        }
        left.await();
        ReadReport.print(known.size(), instances.get(), start);
    }
}
